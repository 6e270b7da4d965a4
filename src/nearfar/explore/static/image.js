// The panel of one image, of the map or from outside, with its neighbours; and the card under the pointer.

import { neighbors, percent, search } from "/static/data.js";
import { byId, make, picture, say } from "/static/parts.js";

const COUNTS = [5, 10, 20];

export class ImagePanel extends EventTarget {
  constructor(points) {
    super();
    this.points = points;
    this.element = byId("image");
    this.k = Math.min(10, points.about.neighbors);
    this.asked = 0;
    this.current = null;
    this.empty();
  }

  empty() {
    this.current = null;
    this.asked += 1;
    const { method, points } = this.points.about;
    this.element.replaceChildren(
      make("p", { class: "hint" }, "Click a point, and its nearest neighbours appear here. Or drop an image from your disk on the map."),
      make(
        "p",
        { class: "soft" },
        method === "t-SNE"
          ? `t-SNE keeps near images together. How far apart two groups lie, and how large they are, means little; neighbours and
             similarities are those of the embedding itself.`
          : "This is a principal component analysis: the two strongest directions of many. Neighbours and similarities are those of the embedding itself.",
      ),
      points > 1 ? make("button", { type: "button", onclick: () => this.#tell("random") }, "Show any image") : null,
    );
  }

  // A point of the map.
  async show(id) {
    const turn = (this.asked += 1);
    this.current = id;
    const { points } = this;
    try {
      const near = (await neighbors(id, this.k)).neighbors;
      if (turn !== this.asked) return;
      const [label, prediction] = [points.labelOf(id), points.predictionOf(id)];
      const rows = [["label", label ?? "none"]];
      if (prediction !== null) {
        rows.push(["prediction", prediction, points.outcomeOf(id)], ["probability", percent(points.probability[id])]);
        if (label !== null) rows.push(["suspicion", percent(points.suspicion[id])]);
      }
      rows.push(["split", points.splitOf(id)]);
      this.#fill(picture(points.picture(id), { lazy: false, alt: `image ${points.names[id]}` }), points.names[id], rows, near, this.#counts());
      say([points.names[id], label !== null && `labelled ${label}`, prediction !== null && `predicted ${prediction}`].filter(Boolean).join(", "));
      this.#tell("marked", { from: id, neighbors: near.map((one) => one.id) });
    } catch (error) {
      this.#fail(error);
    }
  }

  // A file from outside.
  async find(file) {
    const turn = (this.asked += 1);
    this.current = file;
    this.element.replaceChildren(make("p", { class: "hint" }, "looking for its neighbours\u2026"));
    try {
      const found = await search(file, this.k);
      if (turn !== this.asked) return;
      const address = URL.createObjectURL(file);
      const shown = picture(address, { lazy: false, alt: "the image that was searched by" });
      shown.addEventListener("load", () => URL.revokeObjectURL(address));
      const known = found.label === found.voted;
      const answer = known ? found.voted : `unknown, nearest is ${found.voted}`;
      const rows =
        found.voted === null
          ? []
          : [
              ["answer", known ? found.voted : "unknown", known ? null : `nearest: ${found.voted}`],
              ["probability", percent(found.probability)],
            ];
      this.#fill(shown, file.name || "your image", rows, found.neighbors, this.#counts());
      say(`${file.name || "your image"}: ${answer ?? `${found.neighbors.length} neighbours`}`);
      this.#tell("marked", { from: found.position, neighbors: found.neighbors.map((one) => one.id) });
    } catch (error) {
      this.#fail(error);
    }
  }

  #counts() {
    const offered = COUNTS.filter((count) => count <= this.points.about.neighbors);
    if (offered.length < 2) return null;
    const select = make(
      "select",
      {
        id: "k",
        onchange: async () => {
          this.k = Number(select.value);
          await (typeof this.current === "number" ? this.show(this.current) : this.find(this.current));
          byId("k").focus();
        },
      },
      ...offered.map((count) => make("option", { value: count, selected: count === this.k }, String(count))),
    );
    return make("label", {}, "how many ", select);
  }

  #fill(shown, name, rows, near, counts) {
    const facts = rows.flatMap(([key, value, mark]) => [
      make("dt", {}, key),
      make("dd", {}, make("bdi", {}, value), mark ? make("span", { class: `mark ${mark.split(":")[0]}` }, mark) : null),
    ]);
    const list = near.map((one) =>
      make(
        "li",
        {},
        make(
          "button",
          { type: "button", class: "near", "data-id": one.id, onclick: () => this.#tell("open", { id: one.id }) },
          picture(this.points.picture(one.id)),
          one.label === null ? null : make("span", { class: "what" }, make("bdi", {}, one.label)),
          make("span", { class: "soft" }, one.score.toFixed(4)),
          make("span", { class: "soft name" }, make("bdi", {}, one.name)),
        ),
      ),
    );
    this.element.replaceChildren(
      make("div", { class: "one" }, shown, make("div", {}, make("h2", {}, make("bdi", {}, name)), make("dl", {}, ...facts))),
      make("div", { class: "row" }, make("h3", {}, `Nearest, with ${this.points.scoreName()}`), counts),
      make("ol", { class: "pictures", id: "neighbors" }, ...list),
    );
  }

  #fail(error) {
    this.element.replaceChildren(make("p", { class: "error", role: "alert" }, error.message));
    this.#tell("marked", { from: null, neighbors: [] });
  }

  #tell(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

export class Card {
  constructor(points) {
    this.points = points;
    this.element = byId("card");
  }

  show(id, event) {
    const { points, element } = this;
    const [label, prediction] = [points.labelOf(id), points.predictionOf(id)];
    if (this.id !== id) {
      this.id = id;
      element.replaceChildren(
        picture(points.picture(id), { lazy: false }),
        make(
          "div",
          {},
          make("p", { class: "name" }, make("bdi", {}, points.names[id])),
          label === null ? null : make("p", {}, "label ", make("b", {}, make("bdi", {}, label))),
          prediction === null
            ? null
            : make("p", { class: points.isWrong(id) ? "wrong" : "" }, "prediction ", make("b", {}, make("bdi", {}, prediction))),
          make("p", { class: "soft" }, prediction === null ? points.splitOf(id) : `${percent(points.probability[id])}, ${points.splitOf(id)}`),
        ),
      );
    }
    element.hidden = false;
    const { width, height } = element.getBoundingClientRect();
    const room = 14;
    const left = event.clientX + room + width > innerWidth ? event.clientX - room - width : event.clientX + room;
    const top = event.clientY + room + height > innerHeight ? event.clientY - room - height : event.clientY + room;
    element.style.left = `${Math.max(4, left)}px`;
    element.style.top = `${Math.max(4, top)}px`;
  }

  hide() {
    this.element.hidden = true;
    this.id = null;
  }
}
