// Pen strokes to the pixels that a model of digits expects. Pure functions; knows no page, no canvas and no server.
//
// MNIST was made in this way: the digit fills a box of 20 pixels with its aspect ratio kept, each pixel is the share of it
// that is ink, and the box is shifted by whole pixels until the centre of mass lies on pixel 14 of 28, to the nearest.
// (LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.)

const BOX = 20 / 28; // of the shorter side of the image
const PEN = 0.13; // of the box: 2.6 pixels of 20, the middle of what MNIST's test images have
const FINE = 16; // samples along each side of a pixel: a pixel takes one of 257 shares of ink
const MOST = 640; // samples along the box; in images larger than MNIST's a pixel has fewer
const SMALLEST = 0.1; // of the pad: what is drawn smaller is taken for a dot and not blown up further
const SHARP = 0.35; // cosine: turns of more than 70 degrees
const STEP = 0.015; // of the pad: pieces of a curve are about as long

/**
 * A stroke without the kinks of a mouse that moves fast and leaves few points: quadratic curves through the midpoints. Where
 * it turns sharply it was meant to, and the corner stays.
 * @param {{x: number, y: number}[]} points as the pointer went
 * @returns {{x: number, y: number}[]} a polyline from the first point to the last
 */
export function smooth(points) {
  if (points.length < 3) return points;
  const line = [points[0]];
  let from = points[0];
  for (let i = 1; i < points.length - 1; i++) {
    const bend = points[i];
    const next = points[i + 1];
    if (turn(points[i - 1], bend, next) < SHARP) {
      line.push(bend);
      from = bend;
      continue;
    }
    const to = middle(bend, next);
    const steps = Math.min(8, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / STEP));
    for (let step = 1; step <= steps; step++) {
      const t = step / steps;
      const [a, b, c] = [(1 - t) ** 2, 2 * t * (1 - t), t * t];
      line.push({ x: a * from.x + b * bend.x + c * to.x, y: a * from.y + b * bend.y + c * to.y });
    }
    from = to;
  }
  line.push(points[points.length - 1]);
  return line;
}

/**
 * The image of a drawing, as the model's training images are: boxed, centred, with a pen of their thickness.
 * @param {{x: number, y: number}[][]} strokes in units of the pad's side
 * @param {[number, number]} size height and width of the image
 * @param {"light" | "dark"} ink light on black, or dark on white
 * @returns {Uint8Array | null} grey values in row order; null without a stroke
 */
export function rasterize(strokes, [height, width], ink) {
  const lines = strokes.filter((points) => points.length).map(smooth);
  if (!lines.length) return null;
  const box = Math.max(3, Math.round(BOX * Math.min(height, width)));
  const per = Math.max(2, Math.min(FINE, Math.floor(MOST / box)));
  const side = box * per; // of the fine grid: one sample a cell, inked or not
  const fine = new Uint8Array(side * side);
  const radius = (PEN * side) / 2;
  for (const line of fit(lines, side, radius)) {
    line.forEach((point, i) => thicken(fine, side, line[Math.max(0, i - 1)], point, radius));
  }
  const boxed = shares(fine, box, per);
  const [down, right] = [shift(boxed, box, height, true), shift(boxed, box, width, false)];
  const image = new Uint8Array(height * width).fill(ink === "dark" ? 255 : 0);
  for (let y = 0; y < box; y++) {
    for (let x = 0; x < box; x++) {
      const value = Math.round(255 * boxed[y * box + x]);
      if (!value) continue; // the empty part of the box may lie outside the image
      image[(y + down) * width + x + right] = ink === "dark" ? 255 - value : value;
    }
  }
  return image;
}

/** The centre lines scaled and moved, so that the inked drawing begins at 0 and its longer side is `side`. */
function fit(lines, side, radius) {
  const points = lines.flat();
  const [left, top] = [Math.min(...points.map((p) => p.x)), Math.min(...points.map((p) => p.y))];
  const extent = Math.max(...points.map((p) => p.x - left), ...points.map((p) => p.y - top));
  const scale = (side - 2 * radius) / Math.max(extent, SMALLEST);
  return lines.map((line) => line.map((p) => ({ x: (p.x - left) * scale + radius, y: (p.y - top) * scale + radius })));
}

/** Ink every sample of the grid that is no further than `radius` from the segment. */
function thicken(grid, side, a, b, radius) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const squared = dx * dx + dy * dy || 1;
  const first = (low) => Math.max(0, Math.floor(low - radius));
  const last = (high) => Math.min(side - 1, Math.ceil(high + radius));
  for (let row = first(Math.min(a.y, b.y)); row <= last(Math.max(a.y, b.y)); row++) {
    for (let column = first(Math.min(a.x, b.x)); column <= last(Math.max(a.x, b.x)); column++) {
      const [x, y] = [column + 0.5 - a.x, row + 0.5 - a.y];
      const along = Math.min(1, Math.max(0, (x * dx + y * dy) / squared));
      if ((x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius * radius) grid[row * side + column] = 1;
    }
  }
}

/** The share of inked samples, `per` x `per` of them, in each of `box` x `box` pixels. */
function shares(fine, box, per) {
  const out = new Float64Array(box * box);
  const side = box * per;
  for (let y = 0; y < side; y++) {
    const [row, pixels] = [y * side, Math.floor(y / per) * box];
    for (let x = 0; x < side; x++) {
      if (fine[row + x]) out[pixels + Math.floor(x / per)] += 1;
    }
  }
  return out.map((count) => count / per ** 2);
}

/** By how many whole pixels the ink goes down (or right), so that its centre of mass is on the middle pixel of `length`. */
function shift(boxed, box, length, down) {
  const profile = new Float64Array(box); // ink in each row, or column
  boxed.forEach((value, at) => (profile[down ? Math.floor(at / box) : at % box] += value));
  const mass = profile.reduce((sum, value) => sum + value);
  const centre = profile.reduce((sum, value, at) => sum + value * at, 0) / mass;
  const [first, last] = [profile.findIndex((value) => value > 0), profile.findLastIndex((value) => value > 0)];
  return Math.min(length - 1 - last, Math.max(-first, Math.ceil(length / 2 - 0.5 - centre)));
}

/** The cosine of the angle by which the way from `a` to `c` turns at `b`. */
function turn(a, b, c) {
  const [ux, uy, vx, vy] = [b.x - a.x, b.y - a.y, c.x - b.x, c.y - b.y];
  return (ux * vx + uy * vy) / (Math.hypot(ux, uy) * Math.hypot(vx, vy) || 1);
}

function middle(a, b) {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
}
