"use strict";
// One key is one click: whatever a key does, a button with that data-key does too. Arrows move among the tiles.
(() => {
  const FIELDS = "input:not([type=checkbox]):not([type=radio]):not([type=file]), textarea, select, [contenteditable]";

  const tiles = () => [...document.querySelectorAll("[data-tile]")];

  // The tile one step away: along the list, or the nearest one in the next row of what is seen.
  function neighbour(all, at, key) {
    if (key === "ArrowLeft") return all[at - 1];
    if (key === "ArrowRight") return all[at + 1];
    const here = all[at].getBoundingClientRect();
    const down = key === "ArrowDown";
    const beyond = all.filter((one) => {
      const there = one.getBoundingClientRect();
      return down ? there.top > here.top + here.height / 2 : there.top < here.top - here.height / 2;
    });
    const far = (one) => {
      const there = one.getBoundingClientRect();
      return Math.abs(there.top - here.top) * 4 + Math.abs(there.left - here.left);
    };
    return beyond.sort((a, b) => far(a) - far(b))[0];
  }

  function move(key) {
    const all = tiles();
    if (!all.length) return false;
    const at = all.findIndex((one) => one.getAttribute("aria-current") === "true");
    const next = at < 0 ? all[0] : neighbour(all, at, key);
    if (!next) return true;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "nearest" });
    next.click();
    return true;
  }

  document.addEventListener("keydown", (event) => {
    const from = event.target instanceof Element ? event.target : document.body;
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || from.closest(FIELDS)) return;
    if (event.key.startsWith("Arrow")) {
      if (from.closest("[role=tablist], canvas, summary")) return;
      if (move(event.key)) event.preventDefault();
      return;
    }
    if (event.repeat || document.body.classList.contains("busy")) return;
    const own = from.closest("button, a, summary, input");
    if ((event.key === "Enter" || event.key === " ") && own && !own.matches("[data-tile]")) return;
    const button = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    if (!button || button.disabled) return;
    event.preventDefault();
    button.click();
  });
})();
