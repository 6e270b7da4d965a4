// The page, put together: who is told when something is chosen.

import { scheme, ways } from "/static/colours.js";
import { load, thousands } from "/static/data.js";
import { Filters } from "/static/filters.js";
import { Find } from "/static/find.js";
import { Card, ImagePanel } from "/static/image.js";
import { EmbeddingMap } from "/static/map.js";
import { byId, make, say } from "/static/parts.js";
import { SelectionPanel } from "/static/selection.js";

const TABS = ["image", "selection", "filters"];

function openTab(name, focus = false) {
  for (const one of TABS) {
    const tab = byId(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === name));
    tab.tabIndex = one === name ? 0 : -1;
    byId(one).hidden = one !== name;
  }
  if (focus) byId(`tab-${name}`).focus();
}

function tabs() {
  TABS.forEach((name, number) => {
    byId(`tab-${name}`).addEventListener("click", () => openTab(name));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: TABS.length - 1 }[event.key];
      if (step) openTab(TABS[(number + step) % TABS.length], true);
    });
  });
}

function describe(points) {
  const { about } = points;
  document.title = `${about.run} \u2013 nearfar explore`;
  byId("run").textContent = about.run;
  const splits = points.splits.flatMap((name, number) => (points.bySplit[number] ? [`${thousands(points.bySplit[number])} ${name}`] : []));
  byId("summary").textContent = `${about.method} of ${thousands(points.count)} images: ${splits.join(", ")}`;
  const kinds = points.classes.length ? `of ${points.classes.length} classes` : "without labels";
  byId("map").setAttribute("aria-label", `Map of ${thousands(points.count)} images ${kinds}`);
  byId("colour").replaceChildren(...ways(points).map(({ value, name }) => make("option", { value }, name)));
  if (!points.labelled) {
    for (const [name, text] of [["placeholder", "Find by name"], ["aria-label", "Find by name"]]) byId("text").setAttribute(name, text);
  }
  if (about.notes.length) {
    byId("notes").hidden = false;
    byId("notes").replaceChildren(...about.notes.map((text) => make("p", {}, text)));
  }
}

async function start() {
  tabs();
  const points = await load();
  const map = new EmbeddingMap(byId("map"), points);
  if (!map.fast) points.about.notes.push("This browser has no WebGL: the map is drawn without it, which is slow for many points.");
  describe(points);
  const [filters, image, selection, find, card] = [
    new Filters(points),
    new ImagePanel(points),
    new SelectionPanel(points),
    new Find(points),
    new Card(points),
  ];
  let selected = null;

  const draw = async () => {
    const colours = scheme(points, byId("colour").value);
    filters.legend(colours);
    await map.draw(colours, filters.shown(), selected);
    byId("map").dataset.ready = "yes";
  };
  const select = async (ids, what) => {
    selected = ids.length ? new Set(ids) : null;
    selection.set(ids, what);
    if (ids.length) openTab("selection");
    await draw();
  };
  const open = async (id) => {
    openTab("image");
    filters.reveal(id);
    await image.show(id);
    byId("panel").scrollTop = 0;
  };
  const offer = {
    wrong: () => [all(points).filter((id) => points.isWrong(id)), "the wrong predictions"],
    suspicious: () => [
      all(points).filter((id) => points.isTold(id)).sort((a, b) => points.suspicion[b] - points.suspicion[a]).slice(0, 100),
      "the most suspicious labels",
    ],
    view: () => [map.inView(), "in view"],
  };
  const nothing = async () => {
    image.empty();
    await map.mark(null);
    await select([], "");
  };

  await draw();
  map.addEventListener("hover", ({ detail }) => card.show(detail.id, detail.event));
  map.addEventListener("leave", () => card.hide());
  map.addEventListener("click", ({ detail }) => {
    if (matchMedia("(hover: none)").matches) card.hide(); // a finger does not leave
    open(detail.id);
  });
  map.addEventListener("area", ({ detail }) => select(detail.ids, "drawn on the map"));
  filters.addEventListener("change", draw);
  image.addEventListener("marked", ({ detail }) => map.mark(detail.from, detail.neighbors));
  image.addEventListener("open", ({ detail }) => open(detail.id));
  image.addEventListener("random", () => open(Math.floor(Math.random() * points.count)));
  selection.addEventListener("open", ({ detail }) => open(detail.id));
  selection.addEventListener("clear", () => select([], ""));
  selection.addEventListener("offer", ({ detail }) => select(...offer[detail.name]()));
  find.addEventListener("found", ({ detail }) => (detail.one === null ? select(detail.ids, detail.what) : open(detail.one)));
  byId("colour").addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", async () => {
    await draw();
    filters.dispatchEvent(new Event("change"));
  });
  modes(map);
  keys(map, { open, select: () => select(...offer.view()), nothing });
  files((file) => {
    openTab("image");
    image.find(file);
  });
}

function all(points) {
  return Array.from({ length: points.count }, (_, id) => id);
}

function modes(map) {
  const buttons = [...document.querySelectorAll("[data-mode]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      map.setMode(button.dataset.mode);
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
    });
  }
  byId("nearer").addEventListener("click", () => map.zoom(1 / 1.6));
  byId("farther").addEventListener("click", () => map.zoom(1.6));
  byId("whole").addEventListener("click", () => map.whole());
}

function keys(map, { open, select, nothing }) {
  const does = {
    ArrowLeft: () => map.move(-0.15, 0),
    ArrowRight: () => map.move(0.15, 0),
    ArrowUp: () => map.move(0, 0.15),
    ArrowDown: () => map.move(0, -0.15),
    "+": () => map.zoom(1 / 1.6),
    "=": () => map.zoom(1 / 1.6),
    "-": () => map.zoom(1.6),
    0: () => map.whole(),
    s: select,
    Enter: () => {
      const id = map.nearestToMiddle();
      if (id === null) say("no image is shown");
      else open(id);
    },
  };
  byId("map").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !does[event.key]) return;
    event.preventDefault();
    does[event.key]();
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      byId("text").focus();
    } else if (event.key === "Escape" && !typing) nothing();
  });
}

// An image from the disk: chosen, dropped on the page, or pasted.
function files(take) {
  const field = byId("file");
  field.addEventListener("change", () => {
    if (field.files[0]) take(field.files[0]);
    field.value = "";
  });
  const over = (on) => {
    byId("drop").hidden = !on;
  };
  addEventListener("dragover", (event) => {
    event.preventDefault();
    if (event.dataTransfer?.types.includes("Files")) over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    if (event.dataTransfer?.files[0]) take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
    if (file) take(file);
  });
}

start().catch((error) => {
  byId("summary").textContent = `The map cannot be shown: ${error.message}`;
  byId("summary").setAttribute("role", "alert");
});
