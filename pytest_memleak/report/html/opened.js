// What an opened row shows: first what broke and the picture of it, then all that is known.

const HOLDER = /^(\S+ (?:B|[KMGT]iB)) in ([\d,]+ tensors?) \(([^)]*)\): (.*)$/s;
const STEPS = / -> |, (kept by|stored in|which holds) /;
const ALIVE = "alive at the peak, by the line that allocated it";

function panel(row) {
  const test = { results: [], ...parsed(`test-${row.number}`) };
  const [charts, draw] = chartsOf(test);
  const alive = test.results.filter((result) => result.alive);
  const treemaps = alive.map((result) => aliveSection(result, alive.length > 1));
  const held = test.results.map(heldSection).filter(Boolean);
  const shown = element("div", { class: "panel" },
    element("div", { class: "promises" }, test.results.length ? test.results.map(promise) : element("p", { class: "quiet" }, "Nothing was asked of this test's memory.")),
    charts,
    treemaps.length || held.length ? element("div", { class: "pair" }, treemaps.map(([section]) => section), held) : null,
    element("div", { class: "pair" }, limitsSection(test), blocksSection(test), factsSection(row, test)),
    test.text ? element("details", { class: "text", open: !(test.timelines || held.length || alive.length) }, element("summary", {}, row.verdict === "would fail" ? "As it would be printed" : "As printed"), element("pre", {}, test.text)) : null);
  const drawAll = () => {
    draw();
    treemaps.forEach(([, drawOne]) => drawOne());
  };
  return { shown, drawAll };
}

function promise(result) {
  const used = share(result.measured, result.limit && result.limit.bytes);
  const broken = result.verdict === "fail";
  return element("div", { class: `promise ${classOf(result.verdict)}` },
    element("p", {}, element("b", {}, result.message), result.shown && result.limit ? " [not enforced]" : ""),
    used !== null && used !== Infinity ? element("p", { class: "used" }, bar(used, broken), ` ${percent(used)} of the limit`) : null,
    result.advice ? element("p", { class: "advice" }, element("span", {}, "What to do"), ` ${result.advice}`) : null);
}

function chartsOf(test) {
  const charts = byDevice(test);
  if (!charts.length) {
    return [element("p", { class: "quiet" }, "No memory over time was recorded for this test."), () => {}];
  }
  const places = charts.map((chart) => {
    const first = chart.curves[0];
    const place = element("div", { class: "chart", role: "img", "aria-label": spoken(chart) });
    const words = `${chart.curves.map((curve) => curve.kind).join(", ")} on ${chart.device}, ${first.how}`;
    return [place, element("section", { class: "timeline" }, element("h3", {}, "Memory over time", element("small", {}, words)), place)];
  });
  const said = element("p", { class: "quiet" }, "The curve joins samples, and what rose and fell between two of them is not on it. Peaks are marked as high as they were, at the highest sample.");
  return [element("div", {}, places.map(([, section]) => section), said), () => places.forEach(([place], index) => drawing(place, (colours) => drawTimeline(place, charts[index], colours)))];
}

function spoken(chart) {
  const marks = chart.marks.map((mark) => `peak ${size(mark.peak)}${mark.limit === undefined ? "" : `, limit ${size(mark.limit)}`}`);
  return [`Memory of ${chart.device} over time`, ...marks].join("; ");
}

function aliveSection(result, several) {
  const groups = groupsOf(result);
  const place = element("div", { class: "chart", role: "img", "aria-label": "What was alive at the peak, by file and line; the list below says the same" });
  const whose = several ? `${result.check}${result.device ? ` on ${result.device}` : ""}` : "by the file and line that allocated it";
  const section = element("section", {}, element("h3", {}, "Alive at the peak", element("small", {}, whose)), place, aliveList(groups));
  return [section, () => drawing(place, (colours, dark) => drawTreemap(place, result, groups, colours, dark))];
}

/** Who held it: the lines that are no sum, limit or list of lines. */
function heldSection(result) {
  const lines = [...(result.check === "max_leak" ? result.details || [] : []), ...withoutAlive(result)];
  if (!lines.length) return null;
  const title = result.check === "max_leak" ? "Still held" : "Held at the peak";
  return element("section", {}, element("h3", {}, title), element("ul", { class: "holders" }, lines.map(holder)));
}

function withoutAlive(result) {
  let alive = false;
  return (result.explanation || []).filter((line) => {
    if (!line.startsWith("  ")) alive = Boolean(result.alive) && line.startsWith(ALIVE);
    return !alive;
  });
}

function holder(line) {
  const found = HOLDER.exec(line.trim());
  if (!found) return element("li", { class: "said" }, line.trim());
  const [, bytes, tensors, example, way] = found;
  const parts = way.split(STEPS);
  const chain = [];
  for (let index = 0; index < parts.length; index += 2) {
    if (index) chain.push(element("span", { class: "step" }, parts[index - 1] ? `${parts[index - 1]} ` : "→ "));
    chain.push(element("code", {}, parts[index]));
    chain.push(" ");
  }
  return element("li", {}, element("b", {}, bytes), element("span", { class: "what" }, `${tensors} · ${example}`), element("div", { class: "chain" }, chain));
}

function limitsSection(test) {
  const limits = test.results.filter((result) => result.limit);
  const details = test.results.filter((result) => result.check !== "max_leak" && result.details);
  if (!limits.length && !details.length) return null;
  return element("section", {}, element("h3", {}, limits.length ? "Limits" : "Readings"),
    limits.map(({ check, limit }) => element("div", { class: "limit" },
      element("p", {}, element("span", { class: "from" }, `${check} `), element("code", {}, limit.text), ` = ${exact(limit.bytes)}`, element("span", { class: "from" }, ` from ${limit.source}`)),
      limit.terms ? element("dl", {}, limit.terms.map((term) => [element("dt", {}, element("code", {}, term.name), ` = ${exact(term.bytes)}`), element("dd", {}, term.meaning)])) : null)),
    details.map((result) => element("ul", { class: "details" }, result.details.map((line) => element("li", {}, line)))));
}

function blocksSection(test) {
  if (!test.blocks) return null;
  const row = (block) => element("tr", {}, element("td", {}, element("code", {}, block.name)), element("td", { class: "number" }, size(block.peak)), element("td", { class: "number" }, size(block.grown)), element("td", { class: "from" }, `${block.kind} on ${block.device}, ${manner(block.how)}`));
  return element("section", {}, element("h3", {}, "Measured blocks"),
    element("table", { class: "plain" }, element("thead", {}, element("tr", {}, ["block", "peak", "grown", ""].map((name) => element("th", {}, name)))), element("tbody", {}, test.blocks.map(row))));
}

function factsSection(row, test) {
  const facts = [
    ["stands in", element("code", {}, row.place)],
    row.card === undefined ? null : ["card", OVERVIEW.cards[row.card][0]],
    row.worker ? ["worker", row.worker] : null,
    row.attempt ? ["attempt", `${row.attempt}; only the last one is kept`] : null,
    ["took", duration(row.seconds)],
    ["link", element("a", { href: linkTo(row) }, "to this test")],
  ].filter(Boolean);
  // A note with a link is the plugin's own: the words, the path, and where it leads from here.
  const note = ([text, path, href]) => element("li", {}, text, href ? element("a", { href, download: "" }, path) : null);
  return element("section", {}, element("h3", {}, "Test"),
    element("dl", { class: "facts" }, facts.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    test.notes ? element("ul", { class: "details" }, test.notes.map(note)) : null);
}

// Charts are drawn when their row is opened, and all that are open are drawn anew for another colour scheme.

const drawn = new Map();
const SCHEME = matchMedia("(prefers-color-scheme: dark)");

// Unpacked on another thread while the table is made.
const unpacked = OVERVIEW.charts ? unpack("plotly") : null;
if (unpacked) unpacked.catch(() => {}); // told where a chart should be
let plotly = null;

/** Runs plotly, once: its text is one of the two that the page's policy lets run. */
function ready() {
  plotly = plotly || unpacked.then((source) => document.head.append(element("script", {}, source)));
  return plotly;
}

async function unpack(id) {
  const letters = atob(document.getElementById(id).textContent);
  const packed = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) packed[at] = letters.charCodeAt(at);
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function drawing(place, draw) {
  drawn.set(place, draw);
  try {
    await ready();
  } catch (error) {
    place.replaceWith(element("p", { class: "quiet" }, `The chart cannot be drawn: ${error}. Browsers since 2023 can.`));
    return;
  }
  if (drawn.has(place)) draw(colours(), SCHEME.matches);
}

function forget(panelElement) {
  for (const place of panelElement.querySelectorAll(".chart")) {
    drawn.delete(place);
    if (window.Plotly) Plotly.purge(place);
  }
}

SCHEME.addEventListener("change", () => window.Plotly && drawn.forEach((draw) => draw(colours(), SCHEME.matches)));

function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "muted", "faint", "line", "surface", "red", "limit", "curve", "fill", "over", "band", "veil"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

const plotlyLook = (colours) => ({
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colours.ink },
  hoverlabel: { bgcolor: colours.surface, bordercolor: colours.faint, font: { color: colours.ink }, align: "left" },
  autosize: true,
});

const plotlyWays = () => ({ displayModeBar: false, responsive: true, typesetMath: false, showTips: false });
