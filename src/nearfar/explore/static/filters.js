// Which points are shown: by class, by split, and by whether the prediction is right. The legend switches them too.

import { classColour } from "/static/colours.js";
import { thousands } from "/static/data.js";
import { byId, make } from "/static/parts.js";

const CHIPS = 24; // that the legend has room for; of more, the largest few
const FEW = 8;

export class Filters extends EventTarget {
  constructor(points) {
    super();
    this.points = points;
    this.hidden = { class: new Set(), split: new Set(), outcome: new Set() };
    this.sought = "";
    this.#render();
  }

  // Uint8Array of 1 for each point that is shown.
  shown() {
    const { points, hidden } = this;
    const result = new Uint8Array(points.count);
    for (let id = 0; id < points.count; id += 1) {
      const gone = hidden.class.has(points.label[id]) || hidden.split.has(points.split[id]) || hidden.outcome.has(points.outcomeOf(id));
      result[id] = gone ? 0 : 1;
    }
    return result;
  }

  active() {
    return this.hidden.class.size + this.hidden.split.size + this.hidden.outcome.size;
  }

  // Make sure that a point can be seen.
  reveal(id) {
    const { points, hidden } = this;
    const before = this.active();
    hidden.class.delete(points.label[id]);
    hidden.split.delete(points.split[id]);
    hidden.outcome.delete(points.outcomeOf(id));
    if (this.active() !== before) this.#changed();
  }

  toggle(kind, key) {
    const set = this.hidden[kind];
    if (!set.delete(key)) set.add(key);
    this.#changed();
  }

  legend(scheme) {
    const element = byId("legend");
    if (scheme.scale) {
      const bar = make("span", { class: "scale", "aria-hidden": "true" });
      bar.style.background = `linear-gradient(to right, ${scheme.scale.join(", ")})`;
      element.replaceChildren(make("span", {}, "0 %, the neighbours agree"), bar, make("span", {}, "100 %, they contradict the label"));
      return;
    }
    const there = scheme.legend.filter((entry) => entry.count);
    const entries = there.length <= CHIPS ? there : [...there].sort((a, b) => b.count - a.count).slice(0, FEW);
    const chips = entries.map(({ colour, name, count, kind, key }) => {
      const inside = [make("span", { class: "swatch", colour }), make("bdi", {}, name), make("span", { class: "soft" }, thousands(count))];
      if (!kind) return make("span", { class: "chip" }, ...inside);
      return make(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(!this.hidden[kind].has(key)),
          title: "show or hide",
          "data-kind": kind,
          "data-key": key,
          onclick: () => {
            this.toggle(kind, key);
            element.querySelector(`[data-kind="${kind}"][data-key="${key}"]`)?.focus();
          },
        },
        ...inside,
      );
    });
    const rest = there.length - entries.length;
    element.replaceChildren(...chips, rest > 0 ? make("span", { class: "soft" }, `and ${thousands(rest)} more; colours repeat, see Filters`) : "");
  }

  #changed() {
    this.#render();
    this.dispatchEvent(new Event("change"));
  }

  #box(kind, key, name, count, colour) {
    const input = make("input", { type: "checkbox", checked: !this.hidden[kind].has(key), "data-kind": kind, "data-key": key });
    input.addEventListener("change", () => {
      this.toggle(kind, key);
      byId("filters").querySelector(`[data-kind="${kind}"][data-key="${key}"]`)?.focus();
    });
    const swatch = colour ? make("span", { class: "swatch", colour }) : null;
    return make("label", { class: "check" }, input, swatch, make("bdi", {}, name), make("span", { class: "soft" }, thousands(count)));
  }

  #render() {
    const { points } = this;
    const all = (kind, keys) => [
      make("button", { type: "button", class: "link", onclick: () => this.#set(kind, []) }, "all"),
      make("button", { type: "button", class: "link", onclick: () => this.#set(kind, keys) }, "none"),
    ];
    const classes = points.classes.map((name, number) => number).filter((number) => points.byClass[number]);
    const splits = points.splits.map((name, number) => number).filter((number) => points.bySplit[number]);
    const filter = make("input", { type: "search", placeholder: "filter classes", "aria-label": "Filter the list of classes", value: this.sought });
    const list = make("div", { class: "checks", id: "class-list" });
    const fill = () => {
      const sought = this.sought.trim().toLowerCase();
      const found = classes.filter((number) => points.classes[number].toLowerCase().includes(sought));
      const boxes = found.slice(0, 400).map((number) =>
        this.#box("class", number, points.classes[number], points.byClass[number], classColour(number, points.classes.length)));
      const rest = found.length - boxes.length;
      list.replaceChildren(...boxes, rest > 0 ? make("p", { class: "soft" }, `and ${thousands(rest)} more: filter the list`) : "");
    };
    filter.addEventListener("input", () => {
      this.sought = filter.value;
      fill();
    });
    fill();
    const told = points.predicted ? points.labelled : 0;
    const outcomes = [["right", told - points.wrong], ["wrong", points.wrong]];
    byId("filters").replaceChildren(
      make("fieldset", {}, make("legend", {}, "Split"), ...splits.map((number) => this.#box("split", number, points.splits[number], points.bySplit[number]))),
      ...(told ? [make("fieldset", {}, make("legend", {}, "Prediction"), ...outcomes.map(([name, count]) => this.#box("outcome", name, name, count)))] : []),
      ...(classes.length
        ? [make("fieldset", {}, make("legend", {}, "Class"), make("div", { class: "row" }, ...all("class", classes)), classes.length > 20 ? filter : null, list)]
        : []),
    );
    byId("filters-count").textContent = this.active() ? String(this.active()) : "";
  }

  #set(kind, keys) {
    this.hidden[kind] = new Set(keys);
    this.#changed();
  }
}
