// The form that teaches a class by the picture at hand, and the list of what was added so far.

import { call, keepKey, key } from "./api.js";
import { className, fill, make, renewed, tile } from "./tiles.js";

const SHOWN = 60; // of the added examples, the newest

const $ = (id) => document.getElementById(id);

/** Adding and deleting examples. */
export class Added {
  #picture;
  #changed;
  #colors = new Map();

  /**
   * @param {() => Blob | null} picture what is to be added
   * @param {() => Promise<void>} changed is told when the gallery is another, and lets the list be made anew
   */
  constructor(picture, changed) {
    this.#picture = picture;
    this.#changed = changed;
    $("key").value = key();
    $("key").addEventListener("input", () => keepKey($("key").value.trim()));
    $("add").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#add();
    });
  }

  /** Offer the classes that there are, and ask for the key where one is needed. */
  offer(model, colors) {
    this.#colors = colors;
    $("classes").replaceChildren(...model.classes.map((one) => make("option", { value: one.name })));
    $("lock").hidden = !model.needs_key;
  }

  async refresh() {
    const { items, total = items.length } = await call(`/v1/items?count=${SHOWN}`);
    $("count").textContent = total ? total.toLocaleString("en") : "";
    const rows = items.slice(0, SHOWN).map((item) => this.#row(item));
    const note = total > rows.length ? `and ${(total - rows.length).toLocaleString("en")} older` : total ? "" : "None yet.";
    if (note) rows.push(make("li", { className: "nothing", textContent: note }));
    $("items").replaceChildren(...rows);
  }

  async #add() {
    const label = $("class").value.trim();
    const picture = this.#picture();
    if (!picture) return say("Draw or choose a picture first.", true);
    if (!label) {
      $("class").focus();
      return say("Give the class a name first.", true);
    }
    const button = $("add").querySelector("button");
    button.disabled = true;
    try {
      const body = new FormData();
      body.append("label", label);
      body.append("image", picture, "image");
      const done = await call("/v1/items", { method: "POST", body, key: $("key").value.trim() });
      done.items.forEach((item) => renewed(item.id));
      say(["Added as ", make("bdi", { textContent: label }), done.new_class ? ", a new class." : "."]);
      await this.#changed();
    } catch (error) {
      this.#explain(error);
    } finally {
      button.disabled = false;
    }
  }

  async #remove(item, row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    try {
      await call(`/v1/items/${encodeURIComponent(item.id)}`, { method: "DELETE", key: $("key").value.trim() });
      const had = row.contains(document.activeElement);
      if (had) (next?.querySelector("button") ?? $("class")).focus();
      const focused = $("items").contains(document.activeElement) ? document.activeElement.dataset.id : null;
      say(["Deleted an example of ", make("bdi", { textContent: item.label }), "."]);
      await this.#changed();
      if (focused) $("items").querySelector(`button[data-id="${CSS.escape(focused)}"]`)?.focus();
    } catch (error) {
      this.#explain(error);
    }
  }

  #row(item) {
    const box = tile();
    fill(box, item.id);
    const button = make("button", { type: "button", textContent: "×", title: "Delete" });
    button.setAttribute("aria-label", `Delete ${item.label}, ${item.name}`);
    button.dataset.id = item.id;
    const row = make("li", { title: item.name }, box, className(item.label, this.#colors.get(item.label)), button);
    button.addEventListener("click", () => this.#remove(item, row));
    return row;
  }

  #explain(error) {
    const known = {
      0: "The server does not answer; try again when it is back.",
      401: $("key").value
        ? "The server does not take this API key; type it again."
        : "Adding and deleting needs the API key of this server.",
    };
    say(known[error.status] ?? error.message, true);
    if (error.status === 401) {
      $("lock").hidden = false;
      $("key").focus();
    }
  }
}

function say(what, wrong = false) {
  $("said").replaceChildren(...[what].flat());
  $("said").classList.toggle("wrong", wrong);
}
