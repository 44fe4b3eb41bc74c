// Amounts in words, and elements from data. What comes from others is only ever text: it goes through
// `textContent`, and nothing here makes markup of a string.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "circle", "text", "polyline", "polygon", "title"]);

export function make(tag, attributes = {}, ...children) {
  const drawn = DRAWN.has(tag) || tag.startsWith("svg:");
  const element = drawn ? document.createElementNS(SVG, tag.replace("svg:", "")) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(number) {
  return number === null || number === undefined ? "–" : whole.format(number);
}

export function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number >= 10 || number < 0.005) return whole.format(number);
  return number.toFixed(number >= 1 ? 1 : 2);
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 999.5 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit && bytes < 9.95 ? bytes.toFixed(1) : whole.format(bytes)} ${units[unit]}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0";
  if (seconds < 0.0000995) return `${whole.format(seconds * 1e6)} µs`;
  if (seconds < 0.9995) return `${seconds < 0.00995 ? (seconds * 1000).toFixed(1) : whole.format(seconds * 1000)} ms`;
  if (seconds < 119.5) return `${seconds < 9.95 ? seconds.toFixed(1) : whole.format(seconds)} s`;
  if (seconds < 7170) return `${whole.format(seconds / 60)} min`;
  return seconds < 172800 ? `${whole.format(seconds / 3600)} h` : `${whole.format(seconds / 86400)} days`;
}

export function age(at, now) {
  return duration(Math.max(1, Math.round(now - at)));
}

// Of what is told once a second, seconds are no news.
export function ago(at, now) {
  if (at === null || at === undefined) return "never";
  return now - at < 4 ? "now" : age(at, now);
}

export function link(view, name) {
  return `#/${view}/${encodeURIComponent(name)}`;
}
