"use strict";
// New pictures: files dropped anywhere on their tab, or chosen, sent one after the other as plain bytes.
(() => {
  const token = () => JSON.parse(document.body.getAttribute("hx-headers"));

  async function send(files) {
    window.workbench.busy(1);
    const refused = [];
    window.workbench.tell(files.length > 1 ? `Reading ${files.length} pictures…` : "Reading the picture…", "");
    for (const file of files) {
      const headers = { ...token(), "X-Name": encodeURIComponent(file.name), "Content-Type": "application/octet-stream" };
      try {
        const answer = await fetch("new", { method: "POST", body: file, headers });
        if (!answer.ok) refused.push(await answer.text());
      } catch {
        refused.push(`${file.name} did not arrive; is the server still running?`);
      }
    }
    window.workbench.busy(-1);
    await window.htmx.ajax("GET", "view?tab=new", { source: "#state", swap: "none" });
    window.workbench.tell(refused.join(" "), "wrong");
  }

  async function group(file) {
    const column = document.getElementById("group-column").value;
    const headers = { ...token(), "X-Name": encodeURIComponent(file.name), "X-Column": encodeURIComponent(column) };
    const answer = await fetch("grouped", { method: "POST", body: file, headers: { ...headers, "Content-Type": "text/csv" } });
    await window.htmx.ajax("GET", "view?set_pattern=", { source: "#state", swap: "none" });
    if (!answer.ok) window.workbench.tell(await answer.text(), "wrong");
  }

  const zone = (event) => (event.target instanceof Element ? event.target.closest("#new") : null);
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // a file dropped beside the zone must not replace the page
    zone(event)?.classList.add("over");
  });
  document.addEventListener("dragleave", (event) => zone(event)?.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!zone(event)) return;
    zone(event).classList.remove("over");
    send([...event.dataTransfer.files]);
  });
  document.addEventListener("change", (event) => {
    if (event.target.id === "group-file" && event.target.files.length) group(event.target.files[0]);
    if (event.target.id === "files" && event.target.files.length) send([...event.target.files]);
  });
})();
