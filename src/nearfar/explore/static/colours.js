// Which colour a point has, and what the legend says of it. Points of one colour are one bucket, and there are at most 24.

// As in the run's plots (Okabe and Ito 2008, as extended by seaborn), the pale ones a little darker on white.
const LIGHT = ["#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#f07fcb", "#8a8a8a", "#b5a800", "#56b4e9"];
const DARK = ["#3b9bd6", "#f0a62b", "#1fbf92", "#ef7b2e", "#d88ecb", "#d3a479", "#fbafe4", "#a5a5a5", "#ece133", "#7cc8f5"];
const MOST = 24;
const STEPS = 12;

export function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

export function classColour(number, count) {
  const ten = isDark() ? DARK : LIGHT;
  if (count <= ten.length) return ten[number % ten.length];
  const place = number % MOST;
  const hue = (place * 137.508 + 205) % 360;
  const light = (isDark() ? 62 : 42) + (place % 3) * 7;
  return `hsl(${hue.toFixed(0)} 62% ${light}%)`;
}

function blend(from, to, share) {
  const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
  const mixed = [1, 3, 5].map((at) => Math.round(part(from, at) + share * (part(to, at) - part(from, at))));
  return `rgb(${mixed.join(", ")})`;
}

export function suspicionColour(share) {
  const [calm, middle, alarm] = isDark() ? ["#3d4654", "#c99a3a", "#ff6b6b"] : ["#c3cad4", "#d08a16", "#b3122b"];
  return share < 0.5 ? blend(calm, middle, 2 * share) : blend(middle, alarm, 2 * share - 1);
}

// What there is to colour by.
export function ways(points) {
  const all = [
    ["label", "label", points.labelled > 0],
    ["prediction", "prediction", points.predicted],
    ["right", "right or wrong", points.predicted && points.labelled > 0],
    ["suspicion", "suspicion", points.predicted && points.labelled > 0],
    ["split", "split", true],
  ];
  return all.filter(([, , there]) => there).map(([value, name]) => ({ value, name }));
}

// A way to colour: { buckets: [{ colour, name }], of: id => bucket, legend: [{ colour, name, count, kind, key }] }.
export function scheme(points, by) {
  const dark = isDark();
  if (by === "label" || by === "prediction") {
    const count = points.classes.length;
    const colours = Math.min(count, count <= 10 ? 10 : MOST);
    const column = points[by];
    const counts = new Int32Array(count);
    for (let id = 0; id < points.count; id += 1) if (column[id] >= 0) counts[column[id]] += 1;
    const none = { colour: dark ? "#4a5563" : "#c3cad4" };
    return {
      buckets: [...Array.from({ length: colours }, (_, number) => ({ colour: classColour(number, count) })), none],
      of: (id) => (column[id] < 0 ? colours : column[id] % colours),
      legend: [
        ...points.classes.map((name, number) => ({
          colour: classColour(number, count),
          name,
          count: counts[number],
          kind: by === "label" ? "class" : null,
          key: number,
        })),
        { ...none, name: "no label", count: column.filter((number) => number < 0).length, kind: null },
      ],
    };
  }
  if (by === "right") {
    const [right, wrong] = dark ? ["#4a5563", "#ff6b6b"] : ["#b9c2cd", "#b3122b"];
    const entries = [
      { colour: right, name: "right", count: points.labelled - points.wrong, kind: "outcome", key: "right" },
      { colour: wrong, name: "wrong", count: points.wrong, kind: "outcome", key: "wrong", big: true },
    ];
    return { buckets: entries, of: (id) => (points.isWrong(id) ? 1 : 0), legend: entries };
  }
  if (by === "suspicion") {
    const shares = Array.from({ length: STEPS }, (_, step) => step / (STEPS - 1));
    return {
      buckets: shares.map((share) => ({ colour: suspicionColour(share), big: share > 0.5 })),
      of: (id) => Math.min(STEPS - 1, Math.floor(points.suspicion[id] * STEPS)),
      legend: [],
      scale: shares.map(suspicionColour),
    };
  }
  const ten = dark ? DARK : LIGHT;
  const order = [7, 3, 0, 2, 4];
  const entries = points.splits.map((name, number) => ({
    colour: number === 0 ? (dark ? "#5b6675" : "#a9b4c1") : ten[order[number] % ten.length],
    name,
    count: points.bySplit[number],
    kind: "split",
    key: number,
  }));
  return { buckets: entries, of: (id) => points.split[id], legend: entries.filter((entry) => entry.count) };
}
