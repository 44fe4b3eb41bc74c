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
    this.onscroll = () => {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = undefined;
        this.draw(false);
      });
    };
    this.onresize = () => {
      this.measure();
      this.draw();
    };
    addEventListener("scroll", this.onscroll, { passive: true });
    addEventListener("resize", this.onresize, { passive: true });
  }

  end() {
    removeEventListener("scroll", this.onscroll);
    removeEventListener("resize", this.onresize);
    cancelAnimationFrame(this.frame);
  }

  // What depends on the size of the page alone.
  measure() {
    this.height = parseInt(getComputedStyle(document.documentElement).getPropertyValue("--row"), 10);
    const seen = this.columns.filter(({ cell }) => cell.offsetParent !== null);
    this.grid = seen.map((column) => column.width).join(" ");
    const least = seen.reduce((sum, column) => sum + parseInt(column.width.match(/\d+/)[0], 10) + 14, 14);
    this.head.style.gridTemplateColumns = this.grid;
    this.head.style.minWidth = this.body.style.minWidth = `${least}px`;
    const lines = Math.ceil(innerHeight / this.height) + 2 * SPARE + 1;
    this.body.replaceChildren();
    this.lines = Array.from({ length: lines }, () => this.line());
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

  // Each row has its line for as long as it is seen: what scrolls by changes a few lines only.
  draw(fresh = true) {
    if (!this.element.isConnected) return;
    if (!this.lines.length) this.measure();
    const { height, lines } = this;
    if (fresh) {
      this.body.style.height = `${this.keys.length * height}px`;
      this.element.setAttribute("aria-rowcount", this.keys.length + 1);
      this.empty.hidden = this.keys.length > 0;
      say(this.empty, this.rows.size ? "Nothing has that in its name." : this.nothing);
    }
    const top = this.body.getBoundingClientRect().top;
    const from = Math.max(0, Math.min(this.keys.length, Math.floor(-top / height) - SPARE));
    for (let index = from; index < from + lines.length; index += 1) {
      const line = lines[index % lines.length];
      const key = this.keys[index];
      if (fresh || line.key !== key || line.index !== index) this.fill(line, key, index);
    }
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
    element.style.gridTemplateColumns = this.grid;
    element.style.display = "none";
    this.body.append(element);
    return { element, cells, key: undefined, index: -1 };
  }

  fill(line, key, index) {
    const { element, cells } = line;
    if (line.key !== key || line.index !== index) {
      [line.key, line.index] = [key, index];
      element.style.display = key === undefined ? "none" : "";
      element.style.top = `${index * this.height}px`;
    }
    if (key === undefined) return;
    const row = this.rows.get(key);
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
      const title = text.length > 12 ? text : "";
      if (cell.title !== title) cell.title = title;
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
    const { height } = this;
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
