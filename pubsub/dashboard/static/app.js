// The page: one stream of events for the view that is looked at, which this draws once a second.

import { Chart, Graph, spark } from "./draw.js";
import { Table } from "./table.js";
import { age, ago, count, duration, link, make, rate, say, size } from "./words.js";

const find = (id) => document.getElementById(id);
const main = find("main");
const PAST = 60; // values of a curve
const SHOWN = 6; // of what is wrong, before the rest is unfolded
const zero = (number) => (number ? "" : "zero");
const lost = (row) => (row.lost ? "lost" : "zero");

// --- views -------------------------------------------------------------------------------------
// Each has `page` (what the server is asked for), `update(model)`, and maybe a `table` and `end()`.

const dash = (text) => text || "–";
const trip = (seconds) => (seconds === 0 ? "< 1 ms" : duration(seconds)); // by a clock of milliseconds
const why = { title: "Why", width: "minmax(180px, 2.6fr)", class: "why", wide: true, value: (row) => row.why, text: (row) => row.why };

function topicsView() {
  const table = new Table("Topics", [
    { title: "Topic", width: "minmax(112px, 2.6fr)", value: (_, key) => key, text: (_, key) => key },
    { title: "Last minute", width: "110px", wide: true, value: (row) => row.rate, draw: (cell, _, key) => spark(cell, state.past.get(key) ?? []) },
    { title: "msgs/s", width: "66px", num: true, value: (row) => row.rate, text: (row) => rate(row.rate), mark: (row) => zero(row.rate) },
    { title: "bytes/s", width: "78px", num: true, wide: true, value: (row) => row.bytes, text: (row) => size(row.bytes), mark: (row) => zero(row.bytes) },
    { title: "Pubs", width: "44px", num: true, wide: true, value: (row) => row.pubs, text: (row) => count(row.pubs), mark: (row) => zero(row.pubs) },
    { title: "Subs", width: "44px", num: true, wide: true, value: (row) => row.subs, text: (row) => count(row.subs), mark: (row) => zero(row.subs) },
    { title: "Lag", width: "62px", num: true, value: (row) => row.lag, text: (row) => count(row.lag), mark: (row) => zero(row.lag) },
    { title: "Lost", width: "62px", num: true, value: (row) => row.lost, text: (row) => count(row.lost), mark: lost },
    { title: "Last put", width: "76px", num: true, wide: true, value: (row) => row.put_at, text: (row, _, at) => ago(row.put_at, at) },
    why,
  ], { href: (key) => link("topic", key), empty: "No topics yet: nobody publishes or subscribes." });
  main.append(table.element);
  return { page: "topics", table, title: "Topics", update: ({ rows, at }) => table.update(rows, at) };
}

function peersView() {
  const coordinators = make("div");
  const table = new Table("Processes", [
    { title: "Process", width: "minmax(112px, 2fr)", value: (row) => row.who, text: (row) => row.who },
    { title: "Pubs", width: "44px", num: true, wide: true, value: (row) => row.pubs, text: (row) => count(row.pubs), mark: (row) => zero(row.pubs) },
    { title: "Subs", width: "44px", num: true, wide: true, value: (row) => row.subs, text: (row) => count(row.subs), mark: (row) => zero(row.subs) },
    { title: "Puts/s", width: "66px", num: true, value: (row) => row.put, text: (row) => rate(row.put), mark: (row) => zero(row.put) },
    { title: "Takes/s", width: "66px", num: true, value: (row) => row.take, text: (row) => rate(row.take), mark: (row) => zero(row.take) },
    { title: "Out", width: "84px", num: true, wide: true, value: (row) => row.out, text: (row) => `${size(row.out)}/s`, mark: (row) => zero(row.out) },
    { title: "In", width: "84px", num: true, wide: true, value: (row) => row.in, text: (row) => `${size(row.in)}/s`, mark: (row) => zero(row.in) },
    { title: "Lag", width: "58px", num: true, wide: true, value: (row) => row.lag, text: (row) => count(row.lag), mark: (row) => zero(row.lag) },
    { title: "Lost", width: "58px", num: true, value: (row) => row.lost, text: (row) => count(row.lost), mark: lost },
    { title: "Loop late", width: "70px", num: true, wide: true, value: (row) => row.loop, text: (row) => duration(row.loop) },
    why,
  ], { href: (key) => link("process", key), empty: "No process tells anything yet." });
  main.append(table.element, coordinators);
  return {
    page: "peers", table, title: "Processes",
    update({ rows, at, head }) {
      table.update(rows, at);
      coordinators.replaceChildren(make("h3", { text: "Coordinators" }), plain(
        ["Address", "Connected", "Trouble"],
        head.coordinators.map((each) => ({ health: each.up < each.of ? "bad" : "ok", cells: [each.address, `${each.up} of ${each.of} processes`, each.why] })),
        "None is known."));
    },
  };
}

function topicView(name) {
  const title = make("h2", {}, make("span", { class: "name", text: name }));
  const facts = make("div", { class: "facts" });
  const reasons = make("div");
  const chart = new Chart();
  const streams = new Table("Streams", [
    { title: "From", width: "minmax(92px, 1.4fr)", value: (row) => row.from, text: (row) => dash(row.from) },
    { title: "To", width: "minmax(92px, 1.4fr)", value: (row) => row.to, text: (row) => dash(row.to) + (row.observer ? " (looks on)" : "") },
    { title: "State", width: "92px", wide: true, value: (row) => row.state, text: (row) => dash(row.state) },
    { title: "Way", width: "56px", wide: true, value: (row) => row.way, text: (row) => dash(row.way) },
    { title: "Put/s", width: "58px", num: true, wide: true, value: (row) => row.put, text: (row) => rate(row.put) },
    { title: "Taken/s", width: "60px", num: true, wide: true, value: (row) => row.take, text: (row) => rate(row.take) },
    { title: "Lag", width: "58px", num: true, value: (row) => row.lag, text: (row) => count(row.lag), mark: (row) => zero(row.lag) },
    { title: "Unsent", width: "58px", num: true, wide: true, value: (row) => row.unsent, text: (row) => count(row.unsent), mark: (row) => zero(row.unsent) },
    { title: "Lost", width: "54px", num: true, value: (row) => row.lost, text: (row) => count(row.lost), mark: lost },
    { title: "Waits", width: "62px", num: true, wide: true, value: (row) => row.oldest, text: (row) => duration(row.oldest) },
    { title: "Handling", width: "66px", num: true, wide: true, value: (row) => row.handling, text: (row) => duration(row.handling) },
    { title: "Round trip", width: "74px", num: true, wide: true, value: (row) => row.trip, text: (row) => trip(row.trip) },
  ], { href: (_, row) => link("process", row.to_key || row.from_key), empty: "Nobody publishes or subscribes it now." });
  const peek = peekPanel(name);
  main.append(title, reasons, facts, chart.element, make("h3", { text: "Streams" }), streams.element, peek.element);
  return {
    page: "topic", name, table: streams, title: name, end: peek.end,
    update({ rows, at, more }) {
      streams.update(rows, at);
      chart.update(state.past.get(name) ?? []);
      reasons.replaceChildren(...causes(more.causes ?? []));
      fill(facts, more.rates === undefined ? [] : [
        ["Messages/s (1 s, 10 s, 1 min)", more.rates.map(rate).join(" · ")],
        ["Bytes/s", size(more.byte_rates[1])],
        ["Publishers", count(more.pubs)],
        ["Subscribers", count(more.subs)],
        ["Lag", count(more.lag)],
        ["Lost", more.lost ? `${count(more.lost)}: ${more.lost_by.map(([who, lost]) => `${who || "Subs that are gone"} ${count(lost)}`).join(", ")}` : "0"],
        ["Last put", ago(more.put_at, at)],
      ]);
    },
  };
}

function peerView(name) {
  const title = make("h2", {}, make("span", { class: "name", text: name }));
  const facts = make("div", { class: "facts" });
  const reasons = make("div");
  const tables = make("div");
  main.append(title, reasons, facts, tables);
  return {
    page: "peer", name, title: name,
    update({ rows, at, more }) {
      say(title.firstChild, more.who ?? name);
      const notes = [...(more.causes ?? [])];
      if (more.trouble) notes.unshift({ text: `It tells nothing: ${more.trouble}`, fault: true });
      reasons.replaceChildren(...causes(notes));
      if (more.who === undefined) {
        tables.replaceChildren(make("p", { class: "empty", text: "No such process is there now." }));
        return;
      }
      fill(facts, [
        ["Address", more.address || "others cannot dial it"],
        ["Version", more.library],
        ["Runs", more.told ? age(more.since, at) : "–"],
        ["Loop late (half, 99 %, most)", more.loop ? more.loop.map(duration).join(" · ") : "not measured yet"],
        ["Shared memory", `${size(more.pool[0])} of ${size(more.pool[1])}`],
        ["Coordinators", more.coordinators.map(([address, up, trouble]) => `${address} ${up ? "connected" : trouble || "not connected"}`).join(", ") || "–"],
        ...(more.left_out ? [["Not told, for they are many", count(more.left_out)]] : []),
      ]);
      const of = (letter) => [...rows].filter(([key]) => key[0] === letter).map(([, row]) => row);
      const pubs = of("p").map((row) => ({
        health: row.waits ? "warn" : "ok", href: link("topic", row.topic),
        cells: [row.topic, rate(row.rate), `${size(row.bytes)}/s`, count(row.put), count(row.subs), count(row.lag), count(row.lost), `${size(row.kept)} of ${size(row.buffer)}`, row.waits ? `put waits: ${row.waits}` : row.overflow],
      }));
      const subs = of("s").map((row) => ({
        health: row.lost ? "warn" : "ok", href: link("topic", row.topic),
        cells: [row.topic + (row.observer ? " (looks on)" : ""), rate(row.rate), `${size(row.bytes)}/s`, count(row.taken), count(row.pubs), `${count(row.waiting)}, ${size(row.waiting_bytes)} of ${size(row.window)}`, duration(row.oldest), duration(row.handling), row.lost_by.map(([reason, lost]) => `${count(lost)} ${reason}`).join(", ") || count(row.lost)],
      }));
      const links = of("l").map((row) => ({
        health: row.up ? (row.pausing > 0.2 ? "warn" : "ok") : "bad", href: link("process", row.key),
        cells: [row.who, row.role, row.up ? "up" : "down", dash(row.way), `${size(row.out)}/s`, `${size(row.in)}/s`, trip(row.trip), row.pausing ? `${Math.round(row.pausing * 100)} %` : "0"],
      }));
      tables.replaceChildren(
        make("h3", { text: "Publishes" }), plain(["Topic", "msgs/s", "bytes/s", "Put", "Subs", "Lag", "Lost", "Buffer", "When full"], pubs, "Nothing."),
        make("h3", { text: "Subscribes" }), plain(["Topic", "msgs/s", "bytes/s", "Taken", "Pubs", "Waiting", "Oldest", "Handling", "Lost"], subs, "Nothing."),
        make("h3", { text: "Links" }), plain(["With", "It is a", "State", "Way", "Out", "In", "Round trip", "Full"], links, "None."));
    },
  };
}

function graphView() {
  const graph = new Graph();
  const note = make("span");
  main.append(make("div", { class: "legend" }, make("span", { text: "Thickness: messages a second. Red: something is wrong. Point at one to see only its streams." }), note), graph.element);
  return {
    page: "graph", title: "Graph",
    update({ rows, more }) {
      graph.update(rows, find("filter").value.toLowerCase());
      say(note, more.left_out ? `${count(more.left_out)} more connections are left out.` : "");
    },
  };
}

// --- parts -------------------------------------------------------------------------------------

function plain(titles, rows, empty) {
  const columns = `minmax(150px, 2fr) repeat(${titles.length - 2}, minmax(70px, 1fr)) minmax(120px, 1.6fr)`;
  const element = make("div", { class: "table", role: "table" });
  const line = (cells, role, extra) => {
    const row = make("div", { class: extra ? "line" : "head", role: "row" });
    row.style.gridTemplateColumns = columns;
    if (extra) {
      row.style.position = "static";
      row.dataset.health = extra.health;
    }
    cells.forEach((text, index) => {
      const cell = make("div", { role, title: text.length > 12 ? text : null });
      if (index === 0 && extra) cell.append(extra.href ? make("a", { href: extra.href, class: "name", text }) : make("span", { class: "name", text }));
      else cell.textContent = text;
      row.append(cell);
    });
    element.append(row);
  };
  line(titles, "columnheader", null);
  rows.forEach((row) => line(row.cells.map(String), "cell", row));
  if (!rows.length) element.append(make("div", { class: "empty", text: empty }));
  return element;
}

function causes(list) {
  if (!list.length) return [];
  const notes = list.every((cause) => !cause.fault);
  return [make("ul", { class: notes ? "wrong notes" : "wrong" }, ...list.map((cause) => make("li", { class: cause.fault ? null : "note" }, reason(cause))))];
}

function reason(cause) {
  const here = location.hash;
  const to = cause.topic ? link("topic", cause.topic) : cause.peer ? link("process", cause.peer) : "";
  return to && to !== here ? make("a", { href: to, text: cause.text }) : make("span", { text: cause.text });
}

function fill(element, facts) {
  element.replaceChildren(...facts.map(([name, text]) => make("dl", {}, make("dt", { text: name }), make("dd", { class: "name", text }))));
}

function peekPanel(topic) {
  const button = make("button", { type: "button", text: "Peek at messages" });
  const note = make("span", { class: "soft", role: "status", text: "The newest, four a second at most. No publisher waits for it." });
  const list = make("ol", { class: "messages", hidden: true });
  let source = null;
  const stop = (text) => {
    source?.close();
    source = null;
    say(button, "Peek at messages");
    if (text) say(note, text);
  };
  const show = (data) => {
    if (data.end) return stop(data.end);
    if (data.ready) return say(note, "Waiting for a message…");
    const text = data.refused ?? data.gap ?? data.value;
    const item = make("li");
    if (data.value !== undefined) {
      say(note, "");
      const at = new Date(data.at * 1000).toLocaleTimeString("en-GB", { hour12: false });
      const over = data.overtaken ? `, ${count(data.overtaken)} passed over` : "";
      item.append(make("span", { class: "soft name", text: `${at}  ${data.publisher} no. ${data.seq}${over}` }), make("br"));
    }
    item.append(make("code", { text }));
    list.hidden = false;
    list.prepend(item);
    while (list.children.length > 50) list.lastChild.remove();
  };
  button.addEventListener("click", () => {
    if (source) return stop("Stopped.");
    say(button, "Stop");
    say(note, "Subscribing…");
    source = new EventSource(`peek?topic=${encodeURIComponent(topic)}`);
    source.onmessage = (event) => show(JSON.parse(event.data));
    source.onerror = () => stop("It has ended: the dashboard is gone, or too many peek at once.");
  });
  return { element: make("div", {}, make("div", { class: "peek" }, button, note), list), end: () => stop("") };
}

// --- state -------------------------------------------------------------------------------------

const state = { view: null, source: null, rows: new Map(), past: new Map(), paused: false, heard: 0, head: null };

function route() {
  const [, kind, name = ""] = location.hash.split("/").map((part, index) => (index > 1 ? decode(part) : part));
  const views = { "": topicsView, processes: peersView, graph: graphView, topic: topicView, process: peerView };
  state.view?.table?.end();
  state.view?.end?.();
  main.replaceChildren();
  state.rows = new Map();
  state.past = new Map();
  state.view = (views[kind ?? ""] ?? topicsView)(name);
  state.view.table?.setFilter(find("filter").value);
  document.title = state.view.page === "topics" ? "pubsubd" : `${state.view.title} – pubsubd`;
  const group = { topic: "topics", peer: "peers" }[state.view.page] ?? state.view.page;
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.dataset.view === group) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  listen();
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function listen() {
  state.source?.close();
  const { page, name } = state.view;
  const source = new EventSource(`events?page=${page}${name === undefined ? "" : `&name=${encodeURIComponent(name)}`}`);
  state.source = source;
  source.onmessage = (event) => {
    if (source === state.source) hear(JSON.parse(event.data));
  };
  source.onerror = () => {
    if (source !== state.source) return;
    live("lost", "not connected");
    if (source.readyState === EventSource.CLOSED) setTimeout(checkIn, 2000, source);
  };
}

// A stream that was refused does not come back by itself: the dashboard was started anew, with
// another token, or too many look on.
async function checkIn(source) {
  if (source !== state.source) return;
  try {
    const answer = await fetch("icon.svg");
    if (answer.status === 401) {
      find("state").replaceChildren(make("p", { text: "This dashboard was started anew: open the link that it has printed." }));
      return;
    }
    listen();
  } catch {
    setTimeout(checkIn, 2000, source);
  }
}

function hear(event) {
  state.heard = performance.now();
  if (event.full) {
    state.rows = new Map();
    state.past = new Map(Object.entries(event.past ?? {}));
  }
  for (const key of event.gone) state.rows.delete(key);
  for (const [key, row] of Object.entries(event.rows)) state.rows.set(key, row);
  if (!event.full) remember(event);
  state.head = event;
  if (!state.paused) draw();
}

function remember(event) {
  const add = (key, value) => {
    const past = state.past.get(key) ?? [];
    past.push(value);
    if (past.length > PAST) past.shift();
    state.past.set(key, past);
  };
  if (state.view.page === "topics") {
    for (const key of state.past.keys()) if (!state.rows.has(key)) state.past.delete(key);
    for (const [key, row] of state.rows) add(key, row.now);
  } else if (state.view.page === "topic" && event.more.now !== undefined) add(state.view.name, event.more.now);
}

function draw() {
  const head = state.head;
  if (!head) return;
  live("live", "live");
  drawState(head);
  const tiles = [
    ["Messages/s", rate(head.rate)],
    ["Bytes/s", size(head.bytes)],
    ["Topics", count(head.topic_count)],
    ["Processes", count(head.peer_count)],
    ["Lost", count(head.lost), head.lost > 0],
    ["Coordinators", head.coordinators.length ? `${head.coordinators.filter((each) => each.up).length} of ${head.coordinators.length}` : "–", head.coordinators.some((each) => !each.up)],
  ];
  const element = find("tiles");
  if (element.children.length !== tiles.length) {
    element.replaceChildren(...tiles.map(([name]) => make("div", {}, make("dt", { text: name }), make("dd"))));
  }
  tiles.forEach(([, text, bad], index) => {
    const tile = element.children[index].lastChild;
    say(tile, text);
    tile.classList.toggle("bad", Boolean(bad));
  });
  state.view.update({ rows: state.rows, at: head.at, more: head.more, head });
}

function drawState(head) {
  const element = find("state");
  const local = new Set((head.more.causes ?? []).map((cause) => cause.text));
  const inside = ["topic", "peer"].includes(state.view.page);
  const wrong = head.trouble ? [{ text: head.trouble }] : head.wrong.filter((cause) => !local.has(cause.text));
  const key = JSON.stringify([wrong.map((cause) => cause.text), head.wrong_count, head.peer_count > 0, inside, element.dataset.all]);
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  if (!head.trouble && !head.wrong_count) {
    element.replaceChildren(make("p", { class: "well", text: head.peer_count ? "Nothing is wrong." : "Nothing is wrong; no process is there yet." }));
    return;
  }
  if (inside && !head.trouble) {
    const others = head.wrong_count - (head.wrong.length - wrong.length);
    const text = others === 1 ? "One thing is wrong elsewhere" : `${count(others)} things are wrong elsewhere`;
    element.replaceChildren(...(others ? [make("p", {}, make("a", { href: "#/", class: "elsewhere", text }))] : []));
    return;
  }
  const all = element.dataset.all === "yes";
  const list = causes(wrong.slice(0, all ? undefined : SHOWN).map((cause) => ({ ...cause, fault: true })))[0];
  const rest = head.trouble ? 0 : head.wrong_count - list.children.length;
  if (rest > 0) {
    const more = make("button", { type: "button", text: `Show ${count(rest)} more`, disabled: all });
    more.addEventListener("click", () => {
      element.dataset.all = "yes";
      drawState(state.head);
    });
    list.append(make("li", { class: "note" }, all ? `and ${count(rest)} more` : more));
  }
  element.replaceChildren(list);
}

function live(kind, text) {
  const element = find("live");
  element.dataset.state = state.paused && kind === "live" ? "paused" : kind;
  say(element, state.paused && kind === "live" ? "paused" : text);
}

function pause() {
  state.paused = !state.paused;
  find("pause").setAttribute("aria-pressed", state.paused);
  say(find("pause"), state.paused ? "Go on" : "Pause");
  draw();
}

find("pause").addEventListener("click", pause);
find("filter").addEventListener("input", (event) => {
  state.view.table?.setFilter(event.target.value);
  if (state.view.page === "graph") draw();
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || find("help").open) return;
  const filter = find("filter");
  if (event.target === filter) {
    if (event.key === "Escape" || event.key === "Enter") {
      if (event.key === "Escape") {
        filter.value = "";
        state.view.table?.setFilter("");
        draw();
      }
      filter.blur();
      event.preventDefault();
    }
    return;
  }
  const { table } = state.view;
  const onLink = event.target.closest?.("a, button");
  const keys = {
    1: () => (location.hash = "#/"),
    2: () => (location.hash = "#/processes"),
    3: () => (location.hash = "#/graph"),
    "/": () => filter.focus(),
    p: pause,
    "?": () => find("help").showModal(),
    ArrowDown: table && (() => table.move(1)),
    j: table && (() => table.move(1)),
    ArrowUp: table && (() => table.move(-1)),
    k: table && (() => table.move(-1)),
    PageDown: table && (() => table.move(20)),
    PageUp: table && (() => table.move(-20)),
    Enter: table && !onLink && (() => table.open()),
    Escape: () => table?.release() || (["topic", "peer"].includes(state.view.page) && (location.hash = state.view.page === "topic" ? "#/" : "#/processes")),
  };
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});

setInterval(() => {
  if (state.heard && performance.now() - state.heard > 5000 && find("live").dataset.state === "live") live("lost", "nothing heard");
}, 1000);
addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  // Who does not look needs no events.
  if (document.hidden) {
    state.source?.close();
    state.source = null;
  } else if (!state.source) listen();
});
route();
