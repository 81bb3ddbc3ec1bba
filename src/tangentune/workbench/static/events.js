"use strict";
// Long work on the server tells how far it is, as server-sent events; at its end the page is shown anew.
(() => {
  let stream = null;

  function follow() {
    const place = document.querySelector("[data-events]");
    if (!place || stream) return;
    stream = new EventSource(place.dataset.events);
    stream.addEventListener("message", (event) => {
      const bar = document.getElementById("progress");
      const [done, all] = event.data.split(" ").map(Number);
      if (bar) [bar.value, bar.max] = [done, all];
    });
    stream.addEventListener("end", (event) => {
      stream.close();
      stream = null;
      window.htmx.ajax("GET", "view", { source: "#state", swap: "none" });
      if (event.data) window.workbench.tell(event.data, "wrong");
    });
  }
  document.addEventListener("htmx:afterSettle", follow);
  document.addEventListener("DOMContentLoaded", follow);
})();
