"use strict";
// What holds for the whole page: sentences of the server, requests under way, edits not saved, where the focus goes.
(() => {
  const notice = () => document.getElementById("notice");

  let fading = 0;
  function tell(sentence, kind) {
    const place = notice();
    place.textContent = sentence;
    place.className = kind;
    place.hidden = !sentence;
    clearTimeout(fading);
    if (kind === "done") fading = setTimeout(() => tell("", ""), 8000);
  }

  let waiting = 0;
  function busy(step) {
    waiting = Math.max(0, waiting + step);
    document.body.classList.toggle("busy", waiting > 0);
  }

  // Each request is followed by itself: an element that asked may be gone when the answer comes, and its events with it.
  // A refusal is one sentence of plain text; after a stale edit the page shows what there is now.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const { xhr, requestConfig } = event.detail;
    const changes = requestConfig.verb === "post";
    if (changes) {
      busy(1);
      tell("", "");
    }
    xhr.addEventListener("error", () => tell("The server does not answer; is it still running?", "wrong"));
    xhr.addEventListener("loadend", () => {
      if (changes) busy(-1);
      if (xhr.status >= 400) tell(xhr.responseText || "The server could not do this.", "wrong");
      if (xhr.status === 409) window.htmx.ajax("GET", "view", { source: "#state", swap: "none" });
    });
  });

  // The edit that counts stays in sight, however long the time line is.
  function unroll() {
    const now = document.querySelector(".timeline li.now");
    if (now) now.parentElement.scrollLeft = now.offsetLeft + now.offsetWidth - now.parentElement.offsetLeft - now.parentElement.clientWidth + 8;
  }
  document.addEventListener("DOMContentLoaded", unroll);

  document.addEventListener("htmx:afterSettle", () => {
    unroll();
    const focused = document.activeElement; // by its id it is on the same tile, which may not be the chosen one now
    if (focused === document.body || focused === null || focused.matches("[data-tile], #suggest")) {
      document.querySelector('[data-tile][aria-current="true"], #next-guess')?.focus({ preventScroll: true });
    }
    if (follow) document.getElementById("picture")?.scrollIntoView({ block: "start" });
    follow = false;
    const told = document.getElementById("said");
    if (told?.textContent) {
      tell(told.textContent, told.className);
      told.textContent = "";
    }
  });

  // On a narrow page the picture lies below the list: it comes into view when one is chosen by hand.
  let follow = false;
  document.addEventListener("click", (event) => {
    if (!event.isTrusted || !(event.target instanceof Element)) return;
    if (event.target.closest("#notice")) tell("", "");
    for (const menu of document.querySelectorAll(".do details[open]")) {
      if (!menu.contains(event.target) || event.target.closest("a")) menu.open = false;
    }
    follow = event.target.closest("[data-tile]") !== null && window.matchMedia("(max-width: 900px)").matches;
  });

  // Pictures of a cell that are ticked are the ones that are changed together.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-pick]")) return;
    const chosen = [...document.querySelectorAll("[data-pick]:checked")].map((one) => one.dataset.pick);
    const form = document.getElementById("bulk");
    form.querySelector("[name=numbers]").value = chosen.join(",");
    window.htmx.trigger(form, "chosen");
  });

  // Arrows move between tabs, as people who use a keyboard alone expect.
  document.addEventListener("keydown", (event) => {
    const tab = event.target instanceof Element ? event.target.closest("[role=tab]") : null;
    if (!tab || !["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    const all = [...tab.parentElement.querySelectorAll("[role=tab]")];
    const at = all.indexOf(tab);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    next.focus();
    next.click();
  });

  window.addEventListener("beforeunload", (event) => {
    if (document.getElementById("figures")?.dataset.unsaved === "yes") event.preventDefault();
  });

  window.workbench = { tell, busy };
})();
