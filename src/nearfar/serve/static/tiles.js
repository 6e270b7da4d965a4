// Small pieces of the page: a picture of the gallery with a stand-in, a class name with its dot, numbers for people.
// Whatever a class or a file is called, it is shown as text.

import { imageUrl } from "./api.js";

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
  if (id === null) {
    box.classList.remove("none");
    image.removeAttribute("src");
  } else if (image.getAttribute("src") !== imageUrl(id)) {
    image.setAttribute("src", imageUrl(id));
  }
}

/** A class name with the dot of its colour. */
export function className(name, color) {
  const dot = make("span", { className: "dot" });
  dot.setAttribute("aria-hidden", "true");
  if (color) dot.style.background = color;
  return make("span", { className: "class", title: name }, dot, make("bdi", { textContent: name }));
}

/** A probability as people say it, never 100 % while something is missing. */
export function percent(share) {
  const shown = share >= 0.995 && share < 1 ? Math.min(99.9, Math.floor(share * 1000) / 10) : Math.round(share * 100);
  return `${shown} %`;
}

export function count(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}
