// The drawing pad: pointer events to strokes, and strokes to what is seen while drawing. Knows no model and no server.

import { smooth } from "./strokes.js";

const PEN = 0.075; // of the pad's side: what is seen, not what is sent

/** Strokes in units of the pad's side, drawn with a mouse, a finger or a pen. */
export class Pad {
  strokes = [];
  revision = 0; // goes up with every change of the strokes
  color = "#fff";
  #canvas;
  #drawing = null; // the pointer that draws
  #changed;
  #frame = 0;

  /** @param {(done: boolean) => void} changed is told of every change; `done` when the pen is lifted */
  constructor(canvas, changed) {
    this.#canvas = canvas;
    this.#changed = changed;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    canvas.addEventListener("pointerup", (event) => this.#up(event));
    canvas.addEventListener("pointercancel", (event) => this.#up(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  undo() {
    if (this.#drawing !== null || !this.strokes.length) return;
    this.strokes.pop();
    this.revision++;
    this.draw();
    this.#changed(true);
  }

  clear() {
    this.strokes = [];
    this.revision++;
    this.#drawing = null;
    this.draw();
  }

  draw() {
    const canvas = this.#canvas;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (canvas.width !== side || canvas.height !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    context.strokeStyle = this.color;
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = PEN * side;
    for (const stroke of this.strokes) {
      context.beginPath();
      for (const point of smooth(stroke)) context.lineTo(point.x * side, point.y * side);
      if (stroke.length === 1) context.lineTo(stroke[0].x * side, stroke[0].y * side); // a dot
      context.stroke();
    }
  }

  #down(event) {
    if (this.#drawing !== null || event.button > 0) return; // a second finger, or another button
    event.preventDefault();
    try {
      this.#canvas.setPointerCapture(event.pointerId);
    } catch {
      // the pointer is gone already; it draws as far as it came
    }
    this.#drawing = event.pointerId;
    this.strokes.push([this.#place(event)]);
    this.#soon();
  }

  #move(event) {
    if (event.pointerId !== this.#drawing) return;
    const stroke = this.strokes[this.strokes.length - 1];
    const between = event.getCoalescedEvents?.() ?? [];
    for (const one of between.length ? between : [event]) {
      const [point, last] = [this.#place(one), stroke[stroke.length - 1]];
      if (Math.hypot(point.x - last.x, point.y - last.y) > 0.004) stroke.push(point); // a shaking hand adds nothing
    }
    this.#soon();
  }

  #up(event) {
    if (event.pointerId !== this.#drawing) return;
    this.#drawing = null;
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.draw();
    this.#changed(true);
  }

  /** Draw, and tell of the change, once a frame: pens report more often. */
  #soon() {
    this.revision++;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.draw();
      if (this.#drawing !== null) this.#changed(false);
    });
  }

  #place(event) {
    const box = this.#canvas.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  }
}
