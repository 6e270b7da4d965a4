// Small pieces of the page: a picture of the gallery with a stand-in, a class name with its dot, numbers for people.
// Whatever a class or a file is called, it is shown as text.

import { imageUrl } from "./api.js";

const made = new Map(); // when items were added by this page: an id may come back with another picture

/** Let nobody take the picture of item `id` from the browser's cache. */
export function renewed(id) {
  made.set(id, Date.now());
}

/** A new element with attributes as properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The picture of an item of the gallery, or a stand-in where the server has none. */
export function tile() {
  const image = make("img", { alt: "", decoding: "async" });
  const box = make("div", { className: "tile" }, image);
  image.addEventListener("error", () => box.classList.add("none"));
  image.addEventListener("load", () => {
    box.classList.remove("none");
    image.classList.toggle("pixelated", image.naturalWidth <= 64);
  });
  return box;
}

/** Let a tile show item `id`, or nothing. */
export function fill(box, id) {
  const image = box.firstChild;
  const url = id === null ? null : imageUrl(id) + (made.has(id) ? `?at=${made.get(id)}` : "");
  if (url === null) {
    box.classList.remove("none");
    image.removeAttribute("src");
  } else if (image.getAttribute("src") !== url || box.classList.contains("none")) {
    image.setAttribute("src", url); // one that was not to be had is tried again
  }
}

/** A class name with the dot of its colour. */
export function className(name, color) {
  const dot = make("span", { className: "dot" });
  dot.setAttribute("aria-hidden", "true");
  if (color) dot.style.background = color;
  return make("span", { className: "class", title: name }, dot, make("bdi", { textContent: name }));
}

/** A share as people say it: 100 % is all of it, and nothing that is a `chance` is ever that sure. */
export function percent(share, chance = false) {
  if (chance && share >= 0.9995) return "over 99.9 %";
  const shown = share >= 0.995 && share < 1 ? Math.floor(share * 1000) / 10 : Math.round(share * 100);
  return `${shown} %`;
}

export function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
