// The map: points of the gallery on a canvas, coloured by class, and where the query lies. Knows no requests.

import { className, count, fill, make, tile } from "./tiles.js";

const MARGIN = 0.035; // of the side
const NAMED = 40; // classes in the legend
const REACH = 10; // CSS pixels from the pointer to the point that it means
const NONE = "no label";

export class PointMap {
  #canvas;
  #legend;
  #card;
  #tile;
  #data = null; // {x, y, label, id, classes}
  #groups = new Map(); // places of the points by number of their class, in order
  #colors = new Map();
  #chosen = -1; // class that stands out
  #query = null; // {position, name, near: Set of ids}

  constructor(canvas, legend, card) {
    this.#canvas = canvas;
    this.#legend = legend;
    this.#card = card;
    this.#tile = tile();
    card.replaceChildren(this.#tile, make("figcaption"));
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("pointerdown", (event) => this.#point(event));
    canvas.addEventListener("pointerleave", () => (card.hidden = true));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  show(data, colors) {
    [this.#data, this.#colors, this.#chosen] = [data, colors, -1];
    this.#groups = new Map([...new Set(data.label)].sort((a, b) => a - b).map((number) => [number, []]));
    data.label.forEach((number, i) => this.#groups.get(number).push(i));
    this.#name();
    this.draw();
    this.#describe();
  }

  /** Mark the query: its position [x, y] (null: nowhere), the class it is like, and its neighbours. */
  mark(position, name = "", neighbors = []) {
    this.#query = position && { position, name, near: new Set(neighbors.map((one) => one.id)) };
    this.draw();
    this.#describe();
  }

  draw() {
    const canvas = this.#canvas;
    const scale = devicePixelRatio;
    const [width, height] = [Math.round(canvas.clientWidth * scale), Math.round(canvas.clientHeight * scale)];
    if (!width || !this.#data) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    const { x, y, id, classes } = this.#data;
    const radius = scale * Math.min(4, Math.max(1.6, canvas.clientWidth / 220, 90 / Math.sqrt(x.length)));
    context.clearRect(0, 0, width, height);
    for (const [number, points] of this.#groups) {
      context.fillStyle = this.#colors.get(classes[number]) ?? "gray";
      context.globalAlpha = this.#chosen < 0 ? 0.85 : this.#chosen === number ? 1 : 0.1;
      context.beginPath();
      for (const i of points) {
        const [px, py] = this.#place(x[i], y[i], width, height);
        context.moveTo(px + radius, py);
        context.arc(px, py, radius, 0, 2 * Math.PI);
      }
      context.fill();
    }
    context.globalAlpha = 1;
    if (!this.#query) return;
    const style = getComputedStyle(canvas);
    const [ink, ground] = [style.color, style.getPropertyValue("--ground").trim()];
    for (let i = 0; i < x.length; i++) {
      if (!this.#query.near.has(id[i])) continue;
      ring(context, this.#place(x[i], y[i], width, height), radius + 1.5 * scale, 1.2 * scale, ink, ground);
    }
    const [px, py] = this.#place(...this.#query.position, width, height);
    ring(context, [px, py], 9 * scale, 2.5 * scale, ink, ground);
    context.fillStyle = ink;
    context.beginPath();
    context.arc(px, py, 2.2 * scale, 0, 2 * Math.PI);
    context.fill();
  }

  #place(x, y, width, height) {
    const along = (share, length) => length * (MARGIN + (1 - 2 * MARGIN) * Math.min(1, Math.max(0, share)));
    return [along(x, width), along(1 - y, height)];
  }

  #name() {
    const { classes } = this.#data;
    const numbers = [...this.#groups.keys()];
    const buttons = numbers.slice(0, NAMED).map((number) => {
      const name = classes[number] ?? NONE;
      const button = make("button", { type: "button" }, className(name, this.#colors.get(name)));
      button.setAttribute("aria-pressed", "false");
      button.dataset.number = number;
      button.addEventListener("click", () => this.#choose(number));
      return make("li", {}, button);
    });
    const more = numbers.length - NAMED;
    if (more > 0) buttons.push(make("li", { className: "soft", textContent: `and ${more.toLocaleString("en")} more` }));
    this.#legend.replaceChildren(...buttons);
  }

  #choose(number) {
    this.#chosen = this.#chosen === number ? -1 : number;
    for (const button of this.#legend.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.number) === this.#chosen));
    }
    this.draw();
  }

  #point(event) {
    if (!this.#data) return;
    const box = this.#canvas.getBoundingClientRect();
    const { x, y, label, id, classes } = this.#data;
    let [best, least] = [-1, REACH ** 2];
    for (let i = 0; i < x.length; i++) {
      if (this.#chosen >= 0 && label[i] !== this.#chosen) continue;
      const [px, py] = this.#place(x[i], y[i], box.width, box.height);
      const away = (px - event.clientX + box.left) ** 2 + (py - event.clientY + box.top) ** 2;
      if (away < least) [best, least] = [i, away];
    }
    this.#card.hidden = best < 0;
    if (best < 0) return;
    const [px, py] = this.#place(x[best], y[best], box.width, box.height);
    const name = classes[label[best]] ?? NONE;
    fill(this.#tile, id[best]);
    this.#card.lastChild.replaceChildren(className(name, this.#colors.get(name)));
    this.#card.style.left = px < box.width / 2 ? `${px + 12}px` : "auto";
    this.#card.style.right = px < box.width / 2 ? "auto" : `${box.width - px + 12}px`;
    this.#card.style.top = `${Math.min(py, box.height - 64)}px`;
  }

  #describe() {
    if (!this.#data) return;
    const [points, classes] = [this.#data.x.length, [...this.#groups.keys()].filter((number) => number >= 0).length];
    const by = this.#query?.name ? `lies by class ${this.#query.name}` : "is marked";
    const where = this.#query ? `; the query ${by}` : "";
    const what = `${count(points, "image", "images")} ${classes ? `of ${count(classes, "class", "classes")}` : "without labels"}`;
    this.#canvas.setAttribute("aria-label", `Map of ${what}${where}`);
  }
}

function ring(context, [x, y], radius, line, ink, ground) {
  for (const [style, width] of [[ground, 2.6 * line], [ink, line]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
}
