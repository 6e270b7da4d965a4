// The panel of many images: as pictures or as a table, in an order of choice, and as a file.

import { csv, percent, thousands } from "/static/data.js";
import { byId, make, picture, say } from "/static/parts.js";

const PAGE = 120;
// Orders, and what there must be for them.
const ORDERS = {
  "as they come": [() => true, null],
  "most suspicious first": [(points) => points.predicted && points.labelled, (points) => (a, b) => points.suspicion[b] - points.suspicion[a]],
  "least probable first": [(points) => points.predicted, (points) => (a, b) => points.probability[a] - points.probability[b]],
  "by label": [(points) => points.labelled, (points) => (a, b) => points.label[a] - points.label[b]],
};

export class SelectionPanel extends EventTarget {
  constructor(points) {
    super();
    this.points = points;
    this.element = byId("selection");
    this.ids = [];
    this.what = "";
    this.order = "as they come";
    this.table = false;
    this.shown = PAGE;
    this.#render();
  }

  set(ids, what) {
    this.ids = [...ids];
    this.what = what;
    this.shown = PAGE;
    this.#render();
    byId("selected-count").textContent = ids.length ? thousands(ids.length) : "";
    say(ids.length ? `${thousands(ids.length)} images selected: ${what}` : "nothing selected");
  }

  #render() {
    if (!this.ids.length) {
      this.element.replaceChildren(...this.#offers());
      return;
    }
    const { points } = this;
    const [, compare] = ORDERS[this.order];
    const ids = compare ? [...this.ids].sort(compare(points)) : this.ids;
    const order = make(
      "select",
      {
        id: "order",
        onchange: () => {
          this.order = order.value;
          this.#render();
          byId("order").focus();
        },
      },
      ...Object.keys(ORDERS)
        .filter((name) => ORDERS[name][0](points))
        .map((name) => make("option", { selected: name === this.order }, name)),
    );
    const view = (table, name) =>
      make(
        "button",
        {
          type: "button",
          "aria-pressed": String(this.table === table),
          onclick: (event) => {
            this.table = table;
            this.#render();
            this.element.querySelector(`.modes [aria-pressed="true"]`)?.focus();
            event.preventDefault();
          },
        },
        name,
      );
    const part = ids.slice(0, this.shown);
    this.element.replaceChildren(
      make("h2", {}, `${thousands(ids.length)} ${ids.length === 1 ? "image" : "images"}`, make("small", { class: "soft" }, make("bdi", {}, this.what))),
      this.#counts(),
      make(
        "div",
        { class: "row" },
        make("div", { class: "modes", role: "group", "aria-label": "How to show them" }, view(false, "Pictures"), view(true, "Table")),
        make("label", {}, make("span", { class: "hidden" }, "order "), order),
      ),
      make(
        "div",
        { class: "row" },
        make("button", { type: "button", id: "csv", onclick: () => this.#download(ids) }, "Download CSV"),
        make("button", { type: "button", id: "clear", onclick: () => this.dispatchEvent(new Event("clear")) }, "Clear"),
      ),
      this.table ? this.#asTable(part) : this.#asPictures(part),
      ids.length > part.length
        ? make(
            "button",
            {
              type: "button",
              class: "more",
              onclick: () => {
                this.shown += PAGE;
                this.#render();
              },
            },
            `Show ${Math.min(PAGE, ids.length - part.length)} more of ${thousands(ids.length)}`,
          )
        : null,
    );
  }

  #offers() {
    const { points } = this;
    const offer = (name, text) => make("button", { type: "button", "data-offer": name, onclick: () => this.#offer(name) }, text);
    return [
      make("p", { class: "hint" }, "Draw a lasso or a box on the map to select images. Or:"),
      make(
        "div",
        { class: "offers" },
        points.wrong ? offer("wrong", `The wrong predictions (${thousands(points.wrong)})`) : null,
        points.predicted && points.labelled ? offer("suspicious", `The ${Math.min(100, points.labelled)} most suspicious labels`) : null,
        offer("view", "What is in view"),
      ),
    ];
  }

  #offer(name) {
    this.dispatchEvent(new CustomEvent("offer", { detail: { name } }));
  }

  // How many of each label, the most first, and how many are wrong.
  #counts() {
    const { points } = this;
    if (!points.labelled) return null;
    const counts = new Map();
    let wrong = 0;
    for (const id of this.ids) {
      counts.set(points.labelOf(id), (counts.get(points.labelOf(id)) || 0) + 1);
      wrong += points.isWrong(id) ? 1 : 0;
    }
    const most = [...counts].sort((a, b) => b[1] - a[1]);
    const short = (name) => (name.length > 24 ? `${name.slice(0, 23)}\u2026` : name);
    const parts = most.slice(0, 6).map(([label, count]) => `${label === null ? "no label" : short(label)}: ${thousands(count)}`);
    if (most.length > 6) parts.push(`${thousands(most.length - 6)} more classes`);
    if (points.predicted) parts.push(`${thousands(wrong)} wrong`);
    return make("p", { class: "soft counts" }, make("bdi", {}, parts.join(" \u00b7 ")));
  }

  #asPictures(ids) {
    const { points } = this;
    const items = ids.map((id) =>
      make(
        "li",
        {},
        make(
          "button",
          { type: "button", class: "near", "data-id": id, onclick: () => this.#open(id) },
          picture(points.picture(id)),
          points.labelOf(id) === null
            ? null
            : make("span", { class: points.isWrong(id) ? "what wrong" : "what" },
              make("bdi", {}, points.isWrong(id) ? `${points.labelOf(id)} \u2192 ${points.predictionOf(id)}` : points.labelOf(id))),
          make("span", { class: "soft name" }, make("bdi", {}, points.names[id])),
        ),
      ),
    );
    return make("ol", { class: "pictures", id: "gallery" }, ...items);
  }

  #asTable(ids) {
    const { points } = this;
    const { labelled, predicted } = points;
    const cell = (content, type = "") => make("td", { class: type }, content);
    const columns = [
      ["label", labelled, (id) => cell(make("bdi", {}, points.labelOf(id) ?? ""))],
      ["prediction", predicted, (id) => cell(make("bdi", {}, points.predictionOf(id)), points.isWrong(id) ? "wrong" : "")],
      ["probability", predicted, (id) => cell(percent(points.probability[id]), "number")],
      ["suspicion", predicted && labelled, (id) => cell(points.isTold(id) ? percent(points.suspicion[id]) : "", "number")],
    ].filter(([, there]) => there);
    const head = ["", "name", "split", ...columns.map(([name]) => name)];
    const rows = ids.map((id) =>
      make(
        "tr",
        {},
        make("td", {}, picture(points.picture(id))),
        make("th", { scope: "row" }, make("button", { type: "button", class: "link", onclick: () => this.#open(id) }, make("bdi", {}, points.names[id]))),
        make("td", {}, points.splitOf(id)),
        ...columns.map(([, , filled]) => filled(id)),
      ),
    );
    return make(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": "Selected images" },
      make(
        "table",
        {},
        make("thead", {}, make("tr", {}, ...head.map((name) => make("th", { scope: "col" }, name || make("span", { class: "hidden" }, "picture"))))),
        make("tbody", {}, ...rows),
      ),
    );
  }

  #open(id) {
    this.dispatchEvent(new CustomEvent("open", { detail: { id } }));
  }

  #download(ids) {
    const address = URL.createObjectURL(new Blob([csv(this.points, ids)], { type: "text/csv" }));
    make("a", { href: address, download: `${this.points.about.run}-selection.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }
}
