// The map itself: points by plotly on the graphics card, and above them what is marked. Knows positions, buckets and numbers of
// points; what is said of a point, or done with a selection, is for those who listen: hover(id, event), leave, click(id), area(ids).

/* global Plotly */

const QUIET = { hoverinfo: "none", mode: "markers" };
const MARGIN = 0.04;

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export class EmbeddingMap extends EventTarget {
  constructor(element, points) {
    super();
    this.element = element;
    this.points = points;
    this.buckets = [];
    this.marks = null;
    this.mode = "pan";
    this.began = false;
    this.hovered = null;
    this.overlay = svg("svg", { class: "marks", "aria-hidden": "true" });
    element.after(this.overlay);
    this.fast = document.createElement("canvas").getContext("webgl") !== null;
  }

  // Draw again: a colour scheme, which points are shown (Uint8Array), and a Set of those selected, or null.
  async draw(scheme, shown, selected) {
    this.buckets = scheme.buckets.map(() => []);
    for (let id = 0; id < this.points.count; id += 1) if (shown[id]) this.buckets[scheme.of(id)].push(id);
    this.scheme = scheme;
    this.selected = selected;
    const layout = this.began ? this.element.layout : this.#layout();
    layout.dragmode = this.mode;
    layout.selections = [];
    const config = { displayModeBar: false, scrollZoom: true, doubleClick: false, responsive: true, showTips: false };
    await Plotly.react(this.element, this.#traces(), layout, config);
    if (!this.began) this.#listen();
    this.began = true;
    this.#drawMarks();
  }

  // Mark a place, an id or [x, y], with lines to its neighbours; null marks nothing.
  async mark(from, neighbors = []) {
    this.marks = from === null ? null : { at: typeof from === "number" ? this.at(from) : from, neighbors };
    if (this.marks && !this.#inView(this.marks.at)) await this.#centre(this.marks.at);
    this.#drawMarks();
  }

  setMode(mode) {
    this.mode = mode;
    return Plotly.relayout(this.element, { dragmode: mode, selections: [] });
  }

  at(id) {
    return [this.points.x[id], this.points.y[id]];
  }

  zoom(factor) {
    const { x, y } = this.#ranges();
    const about = ([low, high]) => [(low + high) / 2 - ((high - low) / 2) * factor, (low + high) / 2 + ((high - low) / 2) * factor];
    return this.#view(about(x), about(y));
  }

  move(right, up) {
    const { x, y } = this.#ranges();
    const by = ([low, high], share) => [low + share * (high - low), high + share * (high - low)];
    return this.#view(by(x, right), by(y, up));
  }

  whole() {
    return this.#view(...this.#wholeRanges());
  }

  // Numbers of the shown points in view.
  inView() {
    const { x, y } = this.#ranges();
    return this.#shownWhere((px, py) => px >= x[0] && px <= x[1] && py >= y[0] && py <= y[1]);
  }

  nearestToMiddle() {
    const { x, y } = this.#ranges();
    const [mx, my] = [(x[0] + x[1]) / 2, (y[0] + y[1]) / 2];
    let best = null;
    let least = Infinity;
    for (const bucket of this.buckets) {
      for (const id of bucket) {
        const away = (this.points.x[id] - mx) ** 2 + (this.points.y[id] - my) ** 2;
        if (away < least) [best, least] = [id, away];
      }
    }
    return best;
  }

  #traces() {
    const { x, y } = this.points;
    const size = this.#size();
    return this.buckets.map((ids, number) => {
      const { colour, big } = this.scheme.buckets[number];
      const chosen = this.selected ? ids.flatMap((id, at) => (this.selected.has(id) ? [at] : [])) : null;
      return {
        ...QUIET,
        type: this.fast ? "scattergl" : "scatter",
        x: Float32Array.from(ids, (id) => x[id]),
        y: Float32Array.from(ids, (id) => y[id]),
        marker: { color: colour, size: big ? size + 3 : size, opacity: this.#opacity(), line: { width: 0 } },
        selectedpoints: chosen,
        selected: { marker: { opacity: 1, size: (big ? size + 3 : size) + 1 } },
        unselected: { marker: { opacity: 0.12 } },
      };
    });
  }

  // Above the points and not among them: what is marked changes often, and must not have all points drawn anew.
  #drawMarks() {
    const { clientWidth: width, clientHeight: height } = this.element;
    this.overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (!this.marks || !this.began) {
      this.overlay.replaceChildren();
      return;
    }
    const { x, y } = this.#ranges();
    const place = ([px, py]) => [((px - x[0]) / (x[1] - x[0])) * width, ((y[1] - py) / (y[1] - y[0])) * height];
    const [cx, cy] = place(this.marks.at);
    const ends = this.marks.neighbors.map((id) => place(this.at(id)));
    this.overlay.replaceChildren(
      ...ends.map(([px, py]) => svg("line", { x1: cx, y1: cy, x2: px, y2: py })),
      ...ends.map(([px, py]) => svg("circle", { cx: px, cy: py, r: 5.5, class: "near-mark" })),
      svg("circle", { cx, cy, r: 10, class: "here" }),
      svg("circle", { cx, cy, r: 4, class: "middle" }),
    );
  }

  #layout() {
    const hidden = { visible: false, showgrid: false, zeroline: false, constrain: "range" };
    const [x, y] = this.#wholeRanges();
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 0, r: 0, t: 0, b: 0 },
      showlegend: false,
      hovermode: "closest",
      hoverdistance: 14,
      xaxis: { ...hidden, range: x },
      yaxis: { ...hidden, range: y },
      dragmode: this.mode,
      newselection: { line: { color: "#0173b2", width: 2, dash: "solid" } },
      autosize: true,
    };
  }

  #wholeRanges() {
    // The square of the map, with room beside it where the frame is no square: both directions at one scale.
    const wide = Math.max(1, this.element.clientWidth) / Math.max(1, this.element.clientHeight);
    const side = 0.5 + MARGIN;
    const [across, up] = wide > 1 ? [side * wide, side] : [side, side / wide];
    return [[0.5 - across, 0.5 + across], [0.5 - up, 0.5 + up]];
  }

  #ranges() {
    const { xaxis, yaxis } = this.element._fullLayout; // also while it is dragged, when `layout` still has what was
    return { x: xaxis.range.map(Number), y: yaxis.range.map(Number) };
  }

  #view(x, y) {
    return Plotly.relayout(this.element, { "xaxis.range": x, "yaxis.range": y });
  }

  #inView([px, py]) {
    const { x, y } = this.#ranges();
    return px > x[0] && px < x[1] && py > y[0] && py < y[1];
  }

  #centre([px, py]) {
    const { x, y } = this.#ranges();
    const [across, up] = [(x[1] - x[0]) / 2, (y[1] - y[0]) / 2];
    return this.#view([px - across, px + across], [py - up, py + up]);
  }

  #size() {
    const base = this.points.count > 20000 ? 3 : this.points.count > 3000 ? 4.5 : 7;
    if (!this.began) return base;
    const { y } = this.#ranges();
    const nearer = Math.max(1, 1 / (y[1] - y[0]));
    return Math.min(11, Math.round(2 * base * nearer ** 0.45) / 2);
  }

  #opacity() {
    return this.points.count > 20000 ? 0.75 : 0.85;
  }

  #shownWhere(test) {
    const found = [];
    const { x, y } = this.points;
    for (const bucket of this.buckets) for (const id of bucket) if (test(x[id], y[id])) found.push(id);
    return found.sort((a, b) => a - b);
  }

  #listen() {
    const { element } = this;
    const tell = (name, detail) => this.dispatchEvent(new CustomEvent(name, { detail }));
    const idOf = (event) => {
      const [point] = event.points;
      return point ? (this.buckets[point.curveNumber]?.[point.pointNumber] ?? null) : null;
    };
    element.on("plotly_hover", (event) => {
      this.hovered = idOf(event);
      if (this.hovered !== null) tell("hover", { id: this.hovered, event: event.event });
    });
    element.on("plotly_unhover", () => {
      this.hovered = null;
      tell("leave");
    });
    element.on("plotly_click", (event) => {
      const id = idOf(event);
      if (id !== null) tell("click", { id });
    });
    element.on("plotly_doubleclick", () => this.whole());
    element.on("plotly_selected", (event) => {
      if (!event || !(event.range || event.lassoPoints)) return;
      tell("area", { ids: event.range ? this.#inBox(event.range) : this.#inLasso(event.lassoPoints) });
    });
    element.on("plotly_relayouting", () => this.#drawMarks());
    let waiting = null;
    element.on("plotly_relayout", (change) => {
      this.#drawMarks();
      if (!Object.keys(change).some((key) => key.includes("range"))) return;
      clearTimeout(waiting);
      waiting = setTimeout(() => this.#resize(), 180);
    });
    new ResizeObserver(() => this.#keepScale()).observe(element);
  }

  // Both directions at one scale also after the frame has changed.
  #keepScale() {
    if (!this.element.clientHeight) return;
    this.#drawMarks();
    const { x, y } = this.#ranges();
    const across = ((y[1] - y[0]) * this.element.clientWidth) / this.element.clientHeight;
    const middle = (x[0] + x[1]) / 2;
    if (Math.abs(across - (x[1] - x[0])) > 1e-3 * across) this.#view([middle - across / 2, middle + across / 2], y);
  }

  #resize() {
    const size = this.#size();
    if (this.element.data[0].marker.size === size && !this.scheme.buckets[0].big) return;
    const sizes = this.scheme.buckets.map(({ big }) => (big ? size + 3 : size));
    Plotly.restyle(this.element, { "marker.size": sizes }, sizes.map((_, number) => number));
  }

  #inBox({ x, y }) {
    const [left, right] = [Math.min(...x), Math.max(...x)];
    const [low, high] = [Math.min(...y), Math.max(...y)];
    return this.#shownWhere((px, py) => px >= left && px <= right && py >= low && py <= high);
  }

  // Even-odd rule: a ray to the right crosses the outline an odd number of times.
  #inLasso({ x, y }) {
    return this.#shownWhere((px, py) => {
      let inside = false;
      for (let i = 0, j = x.length - 1; i < x.length; j = i, i += 1) {
        if (y[i] > py !== y[j] > py && px < ((x[j] - x[i]) * (py - y[i])) / (y[j] - y[i]) + x[i]) inside = !inside;
      }
      return inside;
    });
  }
}
