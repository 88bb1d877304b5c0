"use strict";
// Texts, elements and data: every text of a test goes through textContent, or through `plain` on its way to plotly.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** 2.001 GiB: as format_size of budget/sizes.py does it. */
function size(count) {
  const sign = count < 0 ? "-" : "";
  const left = Math.abs(count);
  if (left < 1024) return `${sign}${left} B`;
  let power = 1;
  while (power < 4 && Math.round(left / 1024 ** power) >= 1024) power += 1;
  const unit = 1024 ** power;
  if (left % unit === 0) return `${sign}${left / unit} ${UNITS[power]}`;
  const digits = [3, 2, 1].map((decimals) => (left / unit).toFixed(decimals)).find((text) => text.length <= 5);
  return `${sign}${digits || (left / unit).toFixed(0)} ${UNITS[power]}`;
}

const exact = (count) => `${count.toLocaleString("en-US")} B`;

function duration(seconds) {
  if (!seconds) return "–";
  if (seconds < 0.9995) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  if (seconds < 99.95) return `${Number(seconds.toPrecision(3))} s`;
  const whole = Math.round(seconds);
  return whole < 3600
    ? `${Math.floor(whole / 60)} min ${whole % 60} s`
    : `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

const plural = (count, one, many) => `${count.toLocaleString("en-US")} ${count === 1 ? one : many || `${one}s`}`;

/** For plotly, which takes tags and entities in labels for its own markup. */
function plain(text) {
  return String(text)
    .replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ")
    .replace(/&/g, "&amp;")
    .replace(/</g, "&lt;")
    .replace(/>/g, "&gt;");
}

/** A name that may be broken where a person would break it. */
function breakable(text) {
  const pieces = text.split(/(?<=[/_[\]\-.,]|::)/);
  return pieces.flatMap((piece, index) => (index ? [document.createElement("wbr"), piece] : [piece]));
}

/** An element. `attributes`: an object; children: texts, elements, lists of them, or nothing. */
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) made.append(child);
  }
  return made;
}

const parsed = (id) => JSON.parse(document.getElementById(id).textContent);
const OVERVIEW = parsed("overview");

/** How much of its limit was used; null where there is none. */
function share(measured, limit) {
  if (measured === undefined || limit === undefined) return null;
  if (limit === 0) return measured > 0 ? Infinity : 0;
  return Math.max(0, measured) / limit;
}

const percent = (used) => (used === Infinity ? "over" : used >= 9.995 ? `${Math.round(used)} ×` : `${Math.round(used * 100)} %`);

/** "predicted" or "sampled" is said as it is; a measured number's long name is for those who ask. */
function manner(how) {
  if (!how) return "";
  return ["predicted", "sampled", "measured"].find((word) => how.startsWith(word)) || how;
}

function bar(used, broken) {
  if (used === null) return null;
  const filled = element("i", {});
  filled.style.width = `${Math.min(1, used) * 100}%`;
  return element("span", { class: `bar${broken ? " broken" : ""}`, "aria-hidden": "true" }, filled);
}
