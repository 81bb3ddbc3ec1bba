"use strict";
// The map: every training picture as a point; a lasso, or the keyboard, chooses several at once.
(() => {
  const NEAR = 14; // pixels within which a click means a point
  const RAMP = ["--muted", "--c5", "--c1", "--c7"]; // from sure to wrong

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  class Scatter {
    constructor(canvas) {
      this.canvas = canvas;
      this.points = [];
      this.chosen = new Set();
      this.path = null;
      this.at = -1;
      this.watch = new ResizeObserver(() => this.draw());
      this.watch.observe(canvas);
      canvas.addEventListener("pointerdown", (event) => this.begin(event));
      canvas.addEventListener("pointermove", (event) => this.extend(event));
      canvas.addEventListener("pointerup", (event) => this.end(event));
      canvas.addEventListener("pointercancel", () => { this.path = null; this.draw(); });
      canvas.addEventListener("keydown", (event) => this.key(event));
      canvas.addEventListener("focus", () => this.draw());
      canvas.addEventListener("blur", () => this.draw());
      this.load();
    }

    async load() {
      const view = new URLSearchParams(new FormData(document.getElementById("state")));
      const answer = await fetch(`layout.json?${view}`);
      if (!answer.ok) return window.workbench.tell(await answer.text(), "wrong");
      const found = await answer.json();
      this.points = found.points;
      const selected = Number(document.querySelector("#state [name=number]").value);
      this.at = this.points.findIndex((point) => point.number === selected);
      this.draw();
    }

    close() {
      this.watch.disconnect();
    }

    // One scale for both ways: distances must mean the same.
    place(point) {
      const { width, height } = this.canvas.getBoundingClientRect();
      const stretch = Math.min((width - 36) / this.span()[0], (height - 36) / this.span()[1]);
      return [width / 2 + (point.x - this.middle()[0]) * stretch, height / 2 - (point.y - this.middle()[1]) * stretch];
    }

    bounds() {
      const xs = this.points.map((point) => point.x);
      const ys = this.points.map((point) => point.y);
      return [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    }

    span() {
      const [left, right, low, high] = (this.edges ??= this.bounds());
      return [Math.max(right - left, 1e-9), Math.max(high - low, 1e-9)];
    }

    middle() {
      const [left, right, low, high] = (this.edges ??= this.bounds());
      return [(left + right) / 2, (low + high) / 2];
    }

    fill(point) {
      const by = document.getElementById("colour").value;
      if (by === "class") return colour(`--c${point.label % 10}`);
      const doubt = by === "margin" ? (1 - point.margin) / 2 : point.error;
      return colour(RAMP[Math.min(RAMP.length - 1, Math.max(0, Math.floor(doubt * RAMP.length)))]);
    }

    draw() {
      const { width, height } = this.canvas.getBoundingClientRect();
      if (!width || !this.points.length) return;
      const fine = window.devicePixelRatio || 1;
      this.canvas.width = width * fine;
      this.canvas.height = height * fine;
      const pen = this.canvas.getContext("2d");
      pen.scale(fine, fine);
      const size = this.points.length > 3000 ? 2 : this.points.length > 600 ? 3 : 4.5;
      const ink = colour("--ink");
      for (const point of this.points) {
        const [x, y] = this.place(point);
        pen.beginPath();
        pen.arc(x, y, size, 0, 7);
        pen.globalAlpha = point.out ? 0.12 : this.chosen.size && !this.chosen.has(point.number) ? 0.3 : 0.9;
        pen.fillStyle = this.fill(point);
        pen.fill();
        if (point.wrong || this.chosen.has(point.number)) {
          pen.lineWidth = this.chosen.has(point.number) ? 2 : 1;
          pen.strokeStyle = ink;
          pen.stroke();
        }
      }
      pen.globalAlpha = 1;
      if (this.at >= 0) {
        const [x, y] = this.place(this.points[this.at]);
        pen.beginPath();
        pen.arc(x, y, size + 5, 0, 7);
        pen.lineWidth = 2;
        pen.strokeStyle = colour("--accent");
        pen.stroke();
      }
      if (this.path) {
        pen.beginPath();
        this.path.forEach(([x, y], i) => (i ? pen.lineTo(x, y) : pen.moveTo(x, y)));
        pen.closePath();
        pen.lineWidth = 1.5;
        pen.strokeStyle = colour("--accent");
        pen.stroke();
        pen.globalAlpha = 0.1;
        pen.fillStyle = colour("--accent");
        pen.fill();
      }
    }

    begin(event) {
      this.canvas.setPointerCapture(event.pointerId);
      this.path = [[event.offsetX, event.offsetY]];
      this.keep = event.shiftKey;
    }

    extend(event) {
      if (!this.path) return;
      this.path.push([event.offsetX, event.offsetY]);
      this.draw();
    }

    end(event) {
      const path = this.path;
      this.path = null;
      if (!path) return;
      const [x, y] = path[0];
      const still = path.every(([a, b]) => Math.hypot(a - x, b - y) < 4);
      if (!this.keep) this.chosen.clear();
      if (still) {
        this.at = this.nearest(x, y);
        if (this.at >= 0 && event.shiftKey) this.toggle(this.at);
        this.open();
      } else {
        for (const point of this.points) if (!point.out && inside(path, this.place(point))) this.chosen.add(point.number);
      }
      this.tell();
    }

    nearest(x, y) {
      let best = -1;
      let closest = NEAR;
      this.points.forEach((point, i) => {
        const [a, b] = this.place(point);
        const far = Math.hypot(a - x, b - y);
        if (far < closest) [best, closest] = [i, far];
      });
      return best;
    }

    toggle(i) {
      const { number } = this.points[i];
      if (!this.chosen.delete(number)) this.chosen.add(number);
    }

    open() {
      if (this.at < 0) return;
      const { number } = this.points[this.at];
      document.querySelector("#state [name=number]").value = number;
      window.htmx.ajax("GET", "picture", { source: "#state", target: "#picture", swap: "outerHTML" });
    }

    tell() {
      const numbers = [...this.chosen].sort((a, b) => a - b);
      const form = document.getElementById("bulk");
      form.querySelector("[name=numbers]").value = numbers.join(",");
      window.htmx.trigger(form, "chosen");
      this.draw();
    }

    // Arrows go to the nearest point in their direction, space takes it into the choice or out of it.
    key(event) {
      if (event.key === " ") {
        if (this.at >= 0) this.toggle(this.at);
        this.tell();
      } else if (event.key.startsWith("Arrow")) {
        this.step(event.key);
      } else return;
      event.preventDefault();
    }

    step(key) {
      const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
      if (this.at < 0) this.at = 0;
      const [x, y] = this.place(this.points[this.at]);
      let best = -1;
      let least = Infinity;
      this.points.forEach((point, i) => {
        const [a, b] = this.place(point);
        const ahead = (a - x) * dx + (b - y) * dy;
        const aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
        if (i !== this.at && ahead > 0 && ahead + 3 * aside < least) [best, least] = [i, ahead + 3 * aside];
      });
      if (best >= 0) this.at = best;
      this.open();
      this.draw();
    }
  }

  // Whether a point lies inside a closed path: an odd number of edges to its right.
  function inside(path, [x, y]) {
    let odd = false;
    for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
      const [ax, ay] = path[i];
      const [bx, by] = path[j];
      if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
    }
    return odd;
  }

  let shown = null;
  function attach() {
    const canvas = document.getElementById("map");
    if (shown?.canvas === canvas) return;
    shown?.close();
    shown = canvas ? new Scatter(canvas) : null;
  }
  document.addEventListener("htmx:afterSettle", attach);
  document.addEventListener("DOMContentLoaded", attach);
  document.addEventListener("change", (event) => {
    if (event.target.id !== "colour") return;
    document.getElementById("legend-class").hidden = event.target.value !== "class";
    document.getElementById("legend-doubt").hidden = event.target.value === "class";
    shown?.draw();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown?.draw());
})();
