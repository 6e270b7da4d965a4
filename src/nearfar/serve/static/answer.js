// What the server said of the picture: the class, how sure that is, and the nearest images. Knows no requests.

import { className, fill, make, percent, tile } from "./tiles.js";

const $ = (id) => document.getElementById(id);

/** Make room for `k` neighbours, before there are any. */
export function expectNeighbors(k, metric) {
  const names = { cosine: "cosine", dot: "dot product", euclidean: "distance, smaller is nearer" };
  $("metric").textContent = names[metric] ?? metric;
  room(k);
}

/**
 * @param {object} result one of `results` of /v1/predict
 * @param {number} precision that was asked for
 * @param {Map<string, string>} colors by class name
 * @param {boolean} trained whether training saw the class; others are weighed by their examples, whatever the vote
 */
export function showAnswer(result, precision, colors, trained) {
  write(result.label, result.known);
  $("bar").firstElementChild.style.width = `${(100 * result.probability).toFixed(1)}%`;
  $("bar").classList.toggle("unknown", !result.known);
  const sure = `${percent(result.probability, true)} sure`;
  const why = trained ? `with ${percent(result.votes)} of the vote` : "by the examples that were added";
  const voted = make("bdi", { textContent: result.voted });
  const unsure = `, but only ${sure}: too little for a precision of ${percent(precision)}`;
  $("sure").replaceChildren(...(result.known ? [`${sure}, ${why}`] : ["Nearest to ", voted, unsure]));
  showNeighbors(result.neighbors, colors);
}

/** Where no class can be named yet: the nearest images alone. */
export function showNearest(result, colors) {
  write("–", false);
  $("bar").firstElementChild.style.width = "0";
  $("sure").textContent = "Too few images have a label to name a class. Add this one and others below; a few of each are enough.";
  showNeighbors(result.neighbors, colors);
}

/** The same in one sentence, for those who hear the page. */
export function announce(result) {
  const nearest = result.neighbors[0];
  if (result.voted === undefined) {
    $("live").textContent = `No class can be named yet. The nearest image is ${nearest.name}.`;
    return;
  }
  const what = result.known ? result.label : `Unknown; nearest to ${result.voted}`;
  const near = nearest ? ` The nearest image ${nearest.label === null ? "has no label" : `is of class ${nearest.label}`}.` : "";
  $("live").textContent = `${what}, ${percent(result.probability, true)} sure.${near}`;
}

export function clearAnswer(hint) {
  write("–", false);
  $("bar").firstElementChild.style.width = "0";
  $("sure").textContent = hint;
  $("time").textContent = "";
  $("live").textContent = "";
  showNeighbors([], new Map());
}

function write(text, known) {
  $("label").firstElementChild.textContent = text;
  $("label").dataset.length = text.length <= 5 ? "short" : text.length <= 12 ? "word" : text.length <= 20 ? "words" : "long";
  $("label").classList.toggle("unknown", !known);
}

function showNeighbors(neighbors, colors) {
  const places = room(neighbors.length);
  places.forEach((place, i) => {
    const [box, text] = place.children;
    const one = neighbors[i];
    fill(box, one ? one.id : null);
    place.setAttribute("aria-hidden", String(!one));
    place.title = one ? one.name : "";
    text.replaceChildren();
    if (one) text.append(className(one.label ?? "no label", colors.get(one.label)), score(one.score));
  });
}

function score(value) {
  return make("span", { className: "score", textContent: value.toFixed(4) });
}

/** At least `k` places in the list. */
function room(k) {
  const list = $("neighbors");
  while (list.children.length < k) {
    const place = make("li", {}, tile(), make("div"));
    place.setAttribute("aria-hidden", "true"); // until it holds a neighbour
    list.append(place);
  }
  return [...list.children];
}
