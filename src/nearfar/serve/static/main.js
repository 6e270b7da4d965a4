// The page: what is drawn or picked goes to the server, what it says is shown. Holds what is at hand, and nothing else.

import { Added } from "./added.js";
import { announce, clearAnswer, expectNeighbors, showAnswer, showNearest } from "./answer.js";
import { call } from "./api.js";
import { Asker } from "./asker.js";
import { classColors } from "./colors.js";
import { PointMap } from "./map.js";
import { Pad } from "./pad.js";
import { inverted, lightGround, prepare, preview } from "./picture.js";
import { greyPng } from "./png.js";
import { rasterize } from "./strokes.js";
import { count } from "./tiles.js";

const AGAIN = 2000; // ms until a server that is gone is tried again
const HINT = "Draw, drop, paste or choose a picture.";
const PRECISIONS = [0.9, 0.95, 0.99, 0.999];

const $ = (id) => document.getElementById(id);

const dark = matchMedia("(prefers-color-scheme: dark)");

let model = null; // what /v1/model says
let colors = new Map(); // by class name
let blob = null; // what is sent: the picture at hand
let bitmap = null; // of a picked picture
let lost = false; // the server was gone
let revision = -1; // of the strokes that the picture at hand was made of
let picking = 0; // the number of the latest picked picture: reading one takes time

const pad = new Pad($("ink"), drawn);
const map = new PointMap($("points"), $("legend"), $("card"));
const asker = new Asker(predict, heard, failed);
const added = new Added(() => blob, galleryChanged);

function drawn(done) {
  if (!model) return;
  if (pad.revision === revision && blob && !bitmap) return ask(done);
  revision = pad.revision;
  const pixels = rasterize(pad.strokes, model.input.size, model.input.ink);
  if (!pixels) return clear();
  leavePicture();
  blob = greyPng(pixels, model.input.size);
  $("pad").classList.remove("empty");
  const image = new ImageData(model.input.size[1], model.input.size[0]);
  pixels.forEach((value, at) => image.data.set([value, value, value, 255], 4 * at));
  showPixels(image, "your drawing");
  tools();
  ask(done);
}

/** Ask about the picture at hand; it is `done` when nothing is being drawn. */
function ask(done) {
  $("live").textContent = "";
  asker.ask({ about: blob, precision: precision(), done }, done);
}

/** Ask anew: the gallery or the wanted precision is another. */
function askAgain() {
  asker.stop();
  if (blob) ask(true);
}

async function pick(file) {
  if (!model || !file) return;
  const number = ++picking;
  let ready;
  try {
    ready = await prepare(file, model.limits);
  } catch (error) {
    return trouble(error.message);
  }
  if (number !== picking) return;
  leavePicture();
  picking = number;
  pad.clear();
  [blob, bitmap] = [ready.blob, ready.bitmap];
  $("picture").src = URL.createObjectURL(blob);
  $("picture").alt = file.name ? `The picture ${file.name}` : "The picture";
  $("picture").classList.toggle("pixelated", !bitmap || Math.max(bitmap.width, bitmap.height) <= 64);
  $("picture").hidden = !bitmap;
  $("pad").classList.toggle("empty", !bitmap);
  $("hint").textContent = bitmap ? "" : `${file.name || "The picture"} is sent as it is; this browser cannot show it.`;
  if (bitmap) {
    const image = preview(bitmap, model.input.size, model.input.channels);
    showPixels(image, "about what is made of the picture");
    const { ink } = model.input;
    $("invert").hidden = !ink || lightGround(image) === (ink === "dark");
  } else {
    clearPixels();
  }
  tools();
  ask(true);
}

function clear() {
  picking++;
  leavePicture();
  pad.clear();
  blob = null;
  asker.stop();
  calm();
  $("pad").classList.add("empty");
  hint();
  clearPixels();
  clearAnswer(HINT);
  map.mark(null);
  tools();
}

function leavePicture() {
  picking++;
  if ($("picture").src) URL.revokeObjectURL($("picture").src);
  $("picture").removeAttribute("src");
  $("picture").hidden = true;
  $("invert").hidden = true;
  bitmap?.close();
  bitmap = null;
}

async function predict(question, signal) {
  const asked = performance.now();
  const k = Math.min(10, model.limits.k, model.images);
  const path = votes() ? `/v1/predict?k=${k}&precision=${question.precision}` : `/v1/search?k=${k}`;
  const type = question.about.type.startsWith("image/") ? question.about.type : "image/png"; // the server looks for itself
  const { results } = await call(path, { method: "POST", body: question.about, type, signal });
  return { ...results[0], ms: performance.now() - asked };
}

function heard(result, question) {
  calm();
  if (lost) again();
  if (result.voted === undefined) showNearest(result, colors);
  else showAnswer(result, question.precision, colors, model.classes.some((one) => one.trained && one.name === result.voted));
  $("time").textContent = `${Math.max(1, Math.round(result.ms))} ms`;
  map.mark(result.position, result.voted, result.neighbors);
  if (question.done) announce(result);
}

function failed(error, question) {
  lost ||= error.status === 0;
  if (question.done || error.status === 0) {
    clearAnswer("No answer.");
    map.mark(null);
  }
  trouble(error.message);
  return Boolean(error.passing);
}

async function galleryChanged(asking = true) {
  try {
    await learn();
    await Promise.all([added.refresh(), chart()]);
  } catch (error) {
    trouble(error.message);
  }
  if (asking) askAgain();
}

/** The server is back; it may be another one. */
async function again() {
  lost = false;
  const before = model.model;
  await galleryChanged(false);
  if (model.model !== before) location.reload();
}

/** Ask the server what it serves. */
async function learn() {
  model = await call("/v1/model");
  colors = classColors(model.classes.map((one) => one.name), dark.matches);
  const [height, width] = model.input.size;
  document.title = `${model.name} · nearfar`;
  $("name").textContent = model.name;
  $("about").textContent = [
    model.recipe,
    `${count(model.images, "image", "images")} ${model.classes.length ? `of ${count(model.classes.length, "class", "classes")}` : "without labels"}`,
    `${model.dimensions} dimensions`,
    model.engine,
  ].join(" · ");
  $("form").textContent = `${width} × ${height} pixels, ${model.input.channels === 1 ? "grey" : "colour"}`;
  $("precision").disabled = !votes();
  added.offer(model, colors);
}

/** Whether classes can be named: two images of the index must have a label. */
function votes() {
  return model.k > 0;
}

async function begin() {
  try {
    await learn();
    await added.refresh();
    calm();
  } catch (error) {
    trouble(error.message);
    if (error.passing) setTimeout(begin, AGAIN);
    return;
  }
  const ink = model.input.ink;
  pad.color = ink === "dark" ? "#000" : "#fff";
  $("pad").classList.toggle("paper", ink === "dark");
  $("pad").classList.toggle("plain", !ink);
  $("ink").hidden = $("undo").hidden = !ink;
  const values = [...new Set([...PRECISIONS, model.precision])].filter((value) => value > 0).sort((a, b) => a - b);
  const choices = values.map((value) => new Option(`${+(100 * value).toFixed(2)} %`, value));
  $("precision").replaceChildren(...choices, new Option("always answer", 0));
  $("precision").value = model.precision;
  expectNeighbors(Math.min(10, model.limits.k, model.images), model.metric);
  clear();
  try {
    await chart();
  } catch (error) {
    trouble(error.message);
  }
}

/** Fetch the map and draw it; a run without one has more room for the rest. */
async function chart() {
  try {
    const data = await call("/v1/map");
    document.querySelector("main").classList.remove("no-map");
    $("method").textContent = `${data.method} of ${count(data.x.length, "image", "images")}`;
    map.show(data, colors);
  } catch (error) {
    document.querySelector("main").classList.add("no-map");
    if (error.status !== 404) throw error;
  }
}

function precision() {
  return Number($("precision").value);
}

function hint() {
  if (!model) return;
  const alone = "This model takes colour pictures: drop, paste or choose one";
  $("hint").textContent = model.input.ink ? "Draw here, or drop a picture" : alone;
}

function tools() {
  $("undo").disabled = !pad.strokes.length;
  $("clear").disabled = !blob;
}

function showPixels(image, what) {
  [$("pixels").width, $("pixels").height] = [image.width, image.height];
  $("pixels").getContext("2d").putImageData(image, 0, 0);
  $("pixels").setAttribute("aria-label", `What the model sees: ${what}`);
}

function clearPixels() {
  [$("pixels").width, $("pixels").height] = [1, 1];
  $("pixels").setAttribute("aria-label", "What the model sees: nothing yet");
}

function trouble(text) {
  $("trouble").hidden = false;
  if ($("trouble").textContent !== text) $("trouble").textContent = text; // said once, not every time it is tried again
}

function calm() {
  $("trouble").hidden = true;
  $("trouble").textContent = "";
}

$("undo").addEventListener("click", () => pad.undo());
$("clear").addEventListener("click", clear);
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  pick($("file").files[0]);
  $("file").value = ""; // the same file may be chosen again
});
$("invert").addEventListener("click", async () => bitmap && pick(await inverted(bitmap)));
$("precision").addEventListener("change", askAgain);
dark.addEventListener("change", () => model && galleryChanged()); // other colours

document.addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  pick(file);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    if (kind !== "dragleave") event.preventDefault(); // the browser would leave the page for the picture
    $("pad").classList.toggle("over", kind === "dragover");
    if (kind !== "drop") return;
    if (event.dataTransfer.files.length) pick(event.dataTransfer.files[0]);
    else trouble("That is no picture file; drop one from your computer.");
  });
}
document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) pad.undo();
  else if (event.key === "Escape") clear();
  else return;
  event.preventDefault();
});

begin();
