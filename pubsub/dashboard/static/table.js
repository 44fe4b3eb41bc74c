// A table of any length: it sorts and filters all rows, and makes elements only for those that are
// seen, which it uses again for others as the page scrolls.

import { make, say } from "./words.js";

const SPARE = 6; // rows above and below what is seen
const ORDER = { bad: 0, warn: 1, ok: 2, idle: 2 }; // what flows or not is no reason to move

export class Table {
  // columns: [{title, width, value(row, key), text(row, key), wide, num, mark(row), draw(cell, row, key)}]
  constructor(label, columns, { href, empty = "There is nothing." }) {
    this.columns = columns;
    this.href = href;
    this.rows = new Map();
    this.keys = [];
    this.sort = null; // column, or null: what is wrong first, then by name
    this.down = false;
    this.filter = "";
    this.chosen = null;
    this.lines = [];
    this.held = false;
    this.nothing = empty;
    this.body = make("div", { class: "rows", role: "rowgroup" });
    this.head = make("div", { class: "head", role: "row" });
    columns.forEach((column) => {
      const button = make("button", { type: "button", text: column.title });
      button.addEventListener("click", () => this.sortBy(column));
      const cell = make("div", { role: "columnheader", class: classes(column) }, button);
      column.cell = cell;
      this.head.append(cell);
    });
    const heads = make("div", { role: "rowgroup" }, this.head);
    this.empty = make("div", { class: "empty" });
    this.element = make("div", { class: "table", role: "table", "aria-label": label }, heads, this.body, this.empty);
    this.element.addEventListener("pointerenter", () => (this.held = true));
    this.element.addEventListener("pointerleave", () => (this.held = false));
    this.body.addEventListener("click", (event) => {
      const line = event.target.closest(".line");
      if (line && this.href && !event.target.closest("a")) this.open(line.dataset.key);
    });
    this.onscroll = () => this.draw();
    addEventListener("scroll", this.onscroll, { passive: true });
    addEventListener("resize", this.onscroll, { passive: true });
  }

  end() {
    removeEventListener("scroll", this.onscroll);
    removeEventListener("resize", this.onscroll);
  }

  get height() {
    return parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"), 10);
  }

  sortBy(column) {
    const numbers = Boolean(column.num);
    if (this.sort !== column) [this.sort, this.down] = [column, numbers];
    else if (this.down === numbers) this.down = !numbers;
    else this.sort = null;
    this.columns.forEach(({ cell }) => cell.removeAttribute("aria-sort"));
    if (this.sort) column.cell.setAttribute("aria-sort", this.down ? "descending" : "ascending");
    this.arrange(true);
    this.draw();
  }

  setFilter(text) {
    this.filter = text.toLowerCase();
    this.arrange(true);
    this.draw();
  }

  update(rows, at) {
    this.rows = rows;
    this.at = at;
    this.arrange(false);
    this.draw();
  }

  matches(key, row) {
    return !this.filter || this.columns.some((column) => column.text && String(column.text(row, key)).toLowerCase().includes(this.filter));
  }

  // While somebody points at it, or has chosen a row, no row changes its place.
  arrange(anew) {
    const shown = [];
    const kept = !anew && (this.held || this.chosen !== null);
    if (kept) {
      const known = new Set(this.keys);
      for (const key of this.keys) if (this.rows.has(key)) shown.push(key);
      for (const [key, row] of this.rows) if (!known.has(key) && this.matches(key, row)) shown.push(key);
    } else {
      for (const [key, row] of this.rows) if (this.matches(key, row)) shown.push(key);
      const [first] = this.columns;
      const value = (column, key) => column.value(this.rows.get(key), key);
      const byName = (a, b) => compare(value(first, a), value(first, b)) || compare(a, b);
      const { sort, down } = this;
      shown.sort((a, b) => {
        const order = sort
          ? compare(value(sort, a), value(sort, b)) * (down ? -1 : 1)
          : (ORDER[this.rows.get(a).health] ?? 2) - (ORDER[this.rows.get(b).health] ?? 2);
        return order || byName(a, b);
      });
    }
    this.keys = shown;
    if (this.chosen !== null && !this.rows.has(this.chosen)) this.chosen = null;
  }

  draw() {
    const height = this.height;
    const seen = this.columns.filter((column) => column.cell.offsetParent !== null || !this.element.isConnected);
    const grid = seen.map((column) => column.width).join(" ");
    this.head.style.gridTemplateColumns = grid;
    const least = seen.reduce((sum, column) => sum + parseInt(column.width.match(/\d+/)[0], 10) + 14, 14);
    this.head.style.minWidth = this.body.style.minWidth = `${least}px`;
    this.body.style.height = `${this.keys.length * height}px`;
    this.element.setAttribute("aria-rowcount", this.keys.length + 1);
    this.empty.hidden = this.keys.length > 0;
    say(this.empty, this.rows.size ? "Nothing has that in its name." : this.nothing);
    const top = this.body.getBoundingClientRect().top;
    const from = Math.max(0, Math.floor(-top / height) - SPARE);
    const to = Math.min(this.keys.length, Math.ceil((innerHeight - top) / height) + SPARE);
    const needed = Math.max(0, to - from);
    while (this.lines.length < needed) this.lines.push(this.line());
    this.lines.forEach((line, index) => {
      const key = this.keys[from + index];
      const there = index < needed;
      line.element.hidden = !there;
      line.element.style.display = there ? "" : "none";
      if (there) this.fill(line, key, from + index, grid, height);
    });
  }

  line() {
    const element = make("div", { class: "line", role: "row" });
    const cells = this.columns.map((column) => {
      const cell = make("div", { role: "cell", class: classes(column) });
      element.append(cell);
      return cell;
    });
    if (this.href) {
      cells[0].append(make("a", { class: "name" }));
    }
    this.body.append(element);
    return { element, cells };
  }

  fill(line, key, index, grid, height) {
    const row = this.rows.get(key);
    const { element, cells } = line;
    element.style.gridTemplateColumns = grid;
    element.style.top = `${index * height}px`;
    element.dataset.key = key;
    element.dataset.health = row.health ?? "";
    element.classList.toggle("chosen", key === this.chosen);
    element.setAttribute("aria-rowindex", index + 2);
    element.setAttribute("aria-selected", key === this.chosen);
    this.columns.forEach((column, number) => {
      const cell = cells[number];
      if (column.draw) return column.draw(cell, row, key);
      const text = String(column.text(row, key, this.at));
      if (number === 0 && this.href) {
        const anchor = cell.firstChild;
        say(anchor, text);
        anchor.setAttribute("href", this.href(key, row));
      } else {
        say(cell, text);
        cell.classList.toggle("name", number === 0);
      }
      cell.title = text.length > 12 ? text : "";
      if (column.mark) {
        cell.classList.toggle("lost", column.mark(row) === "lost");
        cell.classList.toggle("zero", column.mark(row) === "zero");
      }
    });
  }

  // --- by keyboard ---

  move(step) {
    if (!this.keys.length) return;
    const now = this.keys.indexOf(this.chosen);
    const next = now < 0 ? (step > 0 ? 0 : this.keys.length - 1) : Math.min(this.keys.length - 1, Math.max(0, now + step));
    this.chosen = this.keys[next];
    const height = this.height;
    const top = this.body.getBoundingClientRect().top + next * height;
    const under = document.querySelector("header").getBoundingClientRect().bottom;
    if (top < under) scrollBy(0, top - under - 8);
    else if (top + height > innerHeight) scrollBy(0, top + height - innerHeight + 8);
    this.draw();
  }

  open(key = this.chosen) {
    if (key !== null && this.href && this.rows.has(key)) location.hash = this.href(key, this.rows.get(key));
  }

  release() {
    const had = this.chosen !== null;
    this.chosen = null;
    if (had) this.draw();
    return had;
  }
}

function classes(column) {
  return [column.num && "num", column.wide && "wide", column.class].filter(Boolean).join(" ");
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return a < b ? -1 : 1;
}
