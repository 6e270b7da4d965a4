// The points as typed arrays, and what the server answers. Knows addresses and layouts, nothing of what is drawn.

const TYPES = { "<f4": Float32Array, "<i4": Int32Array, "|u1": Uint8Array };

async function checked(response) {
  if (response.ok) return response;
  let detail = `${response.status} ${response.statusText}`;
  try {
    detail = (await response.json()).detail || detail;
  } catch {
    // not a problem in JSON: the status says what there is to say
  }
  throw new Error(detail);
}

export async function load() {
  const answers = await Promise.all(["/about", "/points", "/names"].map((path) => fetch(path).then(checked)));
  const [about, buffer, names] = await Promise.all([answers[0].json(), answers[1].arrayBuffer(), answers[2].json()]);
  const columns = {};
  for (const { name, type, offset } of about.columns) columns[name] = new TYPES[type](buffer, offset, about.points);
  return new Points(about, columns, names);
}

export async function neighbors(id, k) {
  return (await checked(await fetch(`/points/${id}/neighbors?k=${k}`))).json();
}

export async function search(file, k) {
  return (await checked(await fetch(`/search?k=${k}`, { method: "POST", body: file }))).json();
}

export class Points {
  constructor(about, columns, names) {
    Object.assign(this, columns);
    this.about = about;
    this.names = names;
    this.count = about.points;
    this.classes = about.classes;
    this.splits = about.splits;
    this.byClass = new Int32Array(this.classes.length);
    this.bySplit = new Int32Array(this.splits.length);
    this.wrong = 0;
    this.labelled = 0;
    for (let id = 0; id < this.count; id += 1) {
      if (this.label[id] >= 0) {
        this.byClass[this.label[id]] += 1;
        this.labelled += 1;
      }
      this.bySplit[this.split[id]] += 1;
      this.wrong += this.isWrong(id) ? 1 : 0;
    }
    this.predicted = about.votes > 0; // else no image of the index has a label, and nobody votes
  }

  // What has no label, or is told none, is neither right nor wrong.
  isTold(id) {
    return this.label[id] >= 0 && this.prediction[id] >= 0;
  }

  isWrong(id) {
    return this.isTold(id) && this.label[id] !== this.prediction[id];
  }

  // In a word; nothing where there is nothing to say.
  outcomeOf(id) {
    if (!this.isTold(id)) return null;
    return this.isWrong(id) ? "wrong" : "right";
  }

  picture(id) {
    return `/points/${id}/image?v=${this.about.version}`;
  }

  labelOf(id) {
    return this.classes[this.label[id]] ?? null;
  }

  predictionOf(id) {
    return this.classes[this.prediction[id]] ?? null;
  }

  splitOf(id) {
    return this.splits[this.split[id]];
  }

  scoreName() {
    return { cosine: "cosine", dot: "dot product", euclidean: "distance" }[this.about.metric];
  }
}

// A table of points for a spreadsheet: RFC 4180, with quotes where a text needs them.
export function csv(points, ids) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = ["id,name,split,label,prediction,right,probability,suspicion,x,y"];
  for (const id of ids) {
    const row = [
      id,
      quoted(points.names[id]),
      points.splitOf(id),
      quoted(points.labelOf(id) ?? ""),
      quoted(points.predictionOf(id) ?? ""),
      { right: "yes", wrong: "no" }[points.outcomeOf(id)] ?? "",
      points.prediction[id] >= 0 ? points.probability[id].toFixed(6) : "",
      points.isTold(id) ? points.suspicion[id].toFixed(6) : "",
      points.x[id].toFixed(6),
      points.y[id].toFixed(6),
    ];
    lines.push(row.join(","));
  }
  return `${lines.join("\r\n")}\r\n`;
}

export function percent(share) {
  if (share > 0.9999) return "> 99.99 %";
  const digits = share > 0.99 || share < 0.1 ? 2 : 1;
  return `${(100 * share).toFixed(digits)} %`;
}

export function thousands(number) {
  return number.toLocaleString("en");
}
