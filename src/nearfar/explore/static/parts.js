// Small parts that pages are made of. Every text goes in as text, whatever it holds.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "colour") element.style.background = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A picture of a point; small ones are enlarged pixel by pixel. Where there is none, a frame says so.
export function picture(address, { lazy = true, alt = "" } = {}) {
  const image = make("img", { alt, class: "picture", loading: lazy ? "lazy" : null, decoding: "async", draggable: "false" });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth < 96));
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "picture none" }, "no picture")));
  image.src = address;
  return image;
}

export function byId(id) {
  return document.getElementById(id);
}

export function say(text) {
  byId("live").textContent = text;
}
