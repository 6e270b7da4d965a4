// One colour for each class, the same on the map, beside the neighbours and in nearfar's plots.

// The ten colours of seaborn's "colorblind" palette, an extension of Okabe and Ito (2008).
const TEN = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"];

/**
 * Colours for class names in their order: colour-blind safe up to 10, each twice up to 20, then just different.
 * @param {string[]} names
 * @param {boolean} dark whether the ground is: then the second ten are lighter than the first, not darker
 * @returns {Map<string, string>}
 */
export function classColors(names, dark) {
  return new Map(names.map((name, number) => [name, color(number, names.length, dark)]));
}

function color(number, count, dark) {
  if (count <= TEN.length || (count <= 2 * TEN.length && number < TEN.length)) return TEN[number];
  if (count <= 2 * TEN.length) return mixed(TEN[number - TEN.length], dark ? 255 : 0);
  const light = [32, 47, 62][number % 3] + (dark ? 14 : 0);
  return `hsl(${((number * 0.618034 * 360) % 360).toFixed(1)} 65% ${light}%)`;
}

/** A colour drawn towards black (0) or white (255). */
function mixed(hex, other) {
  const parts = [1, 3, 5].map((at) => Math.round(parseInt(hex.slice(at, at + 2), 16) * 0.55 + other * 0.45));
  return `rgb(${parts.join(" ")})`;
}
