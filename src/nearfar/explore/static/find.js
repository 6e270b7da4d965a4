// The text box: what is typed is sought among classes and names, and offered as a list to choose from.

import { thousands } from "/static/data.js";
import { byId, make } from "/static/parts.js";

const MOST = 6;

// What a text may mean: [{ text, detail, ids, one }], the likeliest first.
export function offers(points, typed) {
  const sought = typed.trim().toLowerCase();
  if (!sought) return [];
  const found = [];
  const classes = points.classes
    .map((name, number) => ({ name, number, at: name.toLowerCase().indexOf(sought) }))
    .filter(({ number, at }) => at >= 0 && points.byClass[number])
    .sort((a, b) => a.name.length - b.name.length || a.number - b.number);
  for (const { name, number } of classes.slice(0, MOST)) {
    found.push({ text: name, detail: `class, ${thousands(points.byClass[number])} images`, ids: () => ofClass(points, number) });
  }
  const exact = [];
  const within = [];
  for (let id = 0; id < points.count; id += 1) {
    const name = points.names[id].toLowerCase();
    if (name === sought) exact.push(id);
    else if (name.includes(sought)) within.push(id);
  }
  const single = exact.concat(within).slice(0, MOST);
  for (const id of single) {
    found.push({ text: points.names[id], detail: ["image", points.splitOf(id), points.labelOf(id)].filter(Boolean).join(", "), ids: () => [id], one: id });
  }
  const all = exact.concat(within);
  if (all.length > 1) found.push({ text: typed.trim(), detail: `in ${thousands(all.length)} names`, ids: () => all });
  return found;
}

function ofClass(points, number) {
  const ids = [];
  for (let id = 0; id < points.count; id += 1) if (points.label[id] === number) ids.push(id);
  return ids;
}

export class Find extends EventTarget {
  constructor(points) {
    super();
    this.points = points;
    this.input = byId("text");
    this.list = byId("found");
    this.offers = [];
    this.active = -1;
    let waiting = null;
    this.input.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.#look(), 120);
    });
    this.input.addEventListener("keydown", (event) => this.#key(event));
    this.input.addEventListener("blur", () => setTimeout(() => this.#close(), 150));
    this.input.addEventListener("focus", () => this.input.value.trim() && this.#look());
    byId("find").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(waiting);
      if (this.typed !== this.input.value || this.list.hidden) this.#look();
      this.#choose(Math.max(0, this.active));
    });
  }

  #look() {
    this.typed = this.input.value;
    this.offers = offers(this.points, this.typed);
    this.active = -1;
    const items = this.offers.map((offer, number) =>
      make(
        "li",
        { role: "option", id: `found-${number}`, "aria-selected": "false", onmousedown: (event) => this.#pressed(event, number) },
        make("bdi", {}, offer.text),
        make("span", { class: "soft" }, make("bdi", {}, offer.detail)),
      ),
    );
    const nothing = this.typed.trim() && !items.length;
    this.list.replaceChildren(...(nothing ? [make("li", { class: "soft", role: "option", "aria-disabled": "true" }, "nothing of that name")] : items));
    this.#open(items.length > 0 || nothing);
  }

  #pressed(event, number) {
    event.preventDefault();
    this.#choose(number);
  }

  #key(event) {
    if (event.key === "Escape") this.#close();
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    if (!this.offers.length) return;
    event.preventDefault();
    const count = this.offers.length;
    this.active = (this.active + (event.key === "ArrowDown" ? 1 : count - (this.active < 0 ? 0 : 1))) % count;
    this.list.querySelectorAll("li").forEach((item, number) => item.setAttribute("aria-selected", String(number === this.active)));
    this.input.setAttribute("aria-activedescendant", `found-${this.active}`);
    byId(`found-${this.active}`).scrollIntoView({ block: "nearest" });
  }

  #choose(number) {
    const offer = this.offers[number];
    if (!offer) return;
    this.#close();
    this.dispatchEvent(new CustomEvent("found", { detail: { ids: offer.ids(), one: offer.one ?? null, what: `${offer.text} (${offer.detail})` } }));
  }

  #open(open) {
    this.list.hidden = !open;
    this.input.setAttribute("aria-expanded", String(Boolean(open)));
    this.input.removeAttribute("aria-activedescendant");
  }

  #close() {
    this.#open(false);
  }
}
