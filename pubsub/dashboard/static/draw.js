// Drawings: small curves in tables, a large one, and the graph of processes.

import { link, make, rate, count } from "./words.js";

// A small curve: `values` one a second, the last is now.
export function spark(cell, values, most) {
  let line = cell.querySelector("polyline");
  if (!line) {
    line = make("polyline");
    cell.append(make("svg", { class: "spark", width: 110, height: 22, viewBox: "0 0 59 20", preserveAspectRatio: "none", "aria-hidden": "true" }, line));
  }
  line.setAttribute("points", points(values, 59, 19, Math.max(...values, 1e-9)));
}

function points(values, width, height, most) {
  const first = width - (values.length - 1);
  return values.map((value, index) => `${first + index},${(height - (value / most) * (height - 1)).toFixed(1)}`).join(" ");
}

export class Chart {
  constructor() {
    this.line = make("polyline");
    this.area = make("polygon");
    const svg = make("svg", { class: "chart", viewBox: "0 0 59 100", preserveAspectRatio: "none", role: "img", "aria-label": "Messages a second over the last minute" }, this.area, this.line);
    this.most = make("span", { class: "most" });
    this.element = make("div", { class: "figure" }, svg, this.most, make("span", { class: "span", text: "the last minute" }));
  }

  update(values) {
    const most = Math.max(...values, 1e-9);
    const drawn = points(values, 59, 96, most * 1.15);
    this.line.setAttribute("points", drawn);
    this.area.setAttribute("points", values.length ? `${59 - (values.length - 1)},100 ${drawn} 59,100` : "");
    this.most.textContent = values.length ? `${rate(Math.max(...values))} messages/s at most` : "";
  }
}

// --- the graph ---------------------------------------------------------------------------------
// Three columns: who only publishes, who does both, who only subscribes. In each, a process stands
// near those that it has streams with. The places change only when the connections do.

const GAP = 26; // at least, between two in a column
const ROOM = 420; // for few of them
const LABEL = 250;
const [LEFT, ABOVE, RIGHT] = [[-11, 4, "end"], [0, -10, "middle"], [11, 4, "start"]]; // where names stand

export class Graph {
  constructor() {
    this.svg = make("svg", { role: "img", "aria-label": "Processes and the streams between them" });
    this.edges = make("g");
    this.nodes = make("g");
    this.svg.append(this.edges, this.nodes);
    this.element = make("div", { class: "graph" }, this.svg);
    this.drawn = { edges: new Map(), nodes: new Map() };
    this.shape = "";
  }

  update(rows, filter) {
    const nodes = new Map();
    const edges = new Map();
    for (const [key, row] of rows) (key[0] === "n" ? nodes : edges).set(key.slice(1), row);
    const named = (key) => !filter || (nodes.get(key)?.who ?? key).toLowerCase().includes(filter);
    if (filter) {
      for (const [key, edge] of edges) if (!named(edge.from) && !named(edge.to)) edges.delete(key);
      const near = new Set([...edges.values()].flatMap((edge) => [edge.from, edge.to]));
      for (const key of nodes.keys()) if (!named(key) && !near.has(key)) nodes.delete(key);
    }
    const shape = JSON.stringify([[...nodes.keys()].sort(), [...edges.keys()].sort()]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.arrange(nodes, edges);
    }
    for (const [key, row] of nodes) {
      const anchor = this.drawn.nodes.get(key);
      anchor.dataset.health = row.health;
      const title = anchor.querySelector("title");
      title.textContent = row.who;
    }
    for (const [key, row] of edges) {
      const path = this.drawn.edges.get(key);
      path.dataset.health = row.health;
      path.setAttribute("stroke-width", (1 + 1.6 * Math.log10(1 + row.rate)).toFixed(1));
      const what = `${row.streams === 1 ? row.topic : `${count(row.streams)} streams`}: ${rate(row.rate)} messages/s, ${count(row.lag)} wait, ${count(row.lost)} lost`;
      path.querySelector("title").textContent = row.why ? `${what}\n${row.why}` : what;
    }
  }

  arrange(nodes, edges) {
    const sends = new Set();
    const takes = new Set();
    const near = new Map([...nodes.keys()].map((key) => [key, []]));
    for (const edge of edges.values()) {
      sends.add(edge.from);
      takes.add(edge.to);
      near.get(edge.from)?.push(edge.to);
      near.get(edge.to)?.push(edge.from);
    }
    const columns = [[], [], []];
    const alone = [];
    for (const key of [...nodes.keys()].sort((a, b) => (nodes.get(a).who < nodes.get(b).who ? -1 : 1))) {
      if (!sends.has(key) && !takes.has(key)) alone.push(key);
      else columns[takes.has(key) ? (sends.has(key) ? 1 : 2) : 0].push(key);
    }
    const used = columns.filter((column) => column.length);
    const place = new Map();
    const number = () => used.forEach((column) => column.forEach((key, index) => place.set(key, (index + 0.5) / column.length)));
    number();
    for (let turn = 0; turn < 4; turn += 1) {
      for (const column of used) {
        const wanted = new Map(column.map((key) => {
          const others = near.get(key).map((other) => place.get(other) ?? 0.5);
          return [key, others.length ? others.reduce((a, b) => a + b, 0) / others.length : place.get(key)];
        }));
        column.sort((a, b) => wanted.get(a) - wanted.get(b) || (nodes.get(a).who < nodes.get(b).who ? -1 : 1));
        number();
      }
    }
    const most = Math.max(0, ...used.map((column) => column.length));
    const gap = Math.max(GAP, Math.min(2.4 * GAP, ROOM / (most || 1)));
    const tall = most * gap;
    const width = Math.max(760, used.length * 420);
    const at = new Map();
    used.forEach((column, index) => {
      const x = used.length === 1 ? width / 2 : LABEL + (index * (width - 2 * LABEL)) / (used.length - 1);
      column.forEach((key, order) => at.set(key, [x, (tall * (order + 0.5)) / column.length, index === used.length - 1 ? RIGHT : index ? ABOVE : LEFT]));
    });
    const side = Math.floor(width / LABEL); // those that have no streams stand below
    alone.forEach((key, index) => at.set(key, [20 + (index % side) * LABEL, tall + GAP * (1 + Math.floor(index / side)), RIGHT]));
    const whole = tall + GAP * (alone.length ? 1 + Math.ceil(alone.length / side) : 0);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${whole}`);
    this.svg.setAttribute("width", width);
    this.svg.setAttribute("height", whole);
    this.nodes.replaceChildren();
    this.edges.replaceChildren();
    this.drawn = { edges: new Map(), nodes: new Map() };
    for (const [key, edge] of edges) {
      const [x, y] = at.get(edge.from);
      const [u, v] = at.get(edge.to);
      const bend = x === u ? 90 : (u - x) / 2;
      const path = make("path", { d: `M${x},${y} C${x + bend},${y} ${x === u ? u + 90 : u - bend},${v} ${u},${v}` }, make("title"));
      this.edges.append(path);
      this.drawn.edges.set(key, path);
    }
    for (const [key, row] of nodes) {
      const [x, y, [dx, dy, anchored]] = at.get(key);
      const label = row.who.length > 34 ? `${row.who.slice(0, 33)}…` : row.who;
      const anchor = make("svg:a", { href: link("process", key), class: "name" },
        make("title"),
        make("circle", { cx: x, cy: y, r: 5 }),
        make("text", { x: x + dx, y: y + dy, "text-anchor": anchored, text: label }));
      const focus = (on) => () => this.focus(on ? key : null, edges);
      for (const [event, on] of [["pointerenter", 1], ["focus", 1], ["pointerleave", 0], ["blur", 0]]) anchor.addEventListener(event, focus(on));
      this.nodes.append(anchor);
      this.drawn.nodes.set(key, anchor);
    }
  }

  focus(key, edges) {
    this.element.classList.toggle("near", key !== null);
    const near = new Set([key]);
    for (const [name, edge] of edges) {
      const mine = edge.from === key || edge.to === key;
      this.drawn.edges.get(name)?.classList.toggle("near", mine);
      if (mine) near.add(edge.from).add(edge.to);
    }
    for (const [name, anchor] of this.drawn.nodes) anchor.classList.toggle("near", near.has(name));
  }
}
