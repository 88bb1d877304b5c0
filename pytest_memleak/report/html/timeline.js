// A test's memory over time: the curve as it was sampled, the limit, the exact peak, and the parts of the test.

const LIKE = { host: "cpu", cpu: "host" };
const PHASES = { setup: "set-up", call: "body", teardown: "teardown" };

/** The page is told differences of whole numbers. */
function summed(timeline) {
  const sums = (differences, unit) => {
    let sum = 0;
    return differences.map((difference) => (sum += difference) * unit);
  };
  return { ...timeline, seconds: sums(timeline.seconds, timeline.step), bytes: sums(timeline.bytes, timeline.unit) };
}

/** Curves of one device are drawn together, those that a promise is about first. */
function byDevice(test) {
  const devices = new Map();
  for (const timeline of test.timelines || []) {
    if (!devices.has(timeline.device)) devices.set(timeline.device, []);
    devices.get(timeline.device).push(summed(timeline));
  }
  const charts = [...devices].map(([device, curves]) => {
    const marks = marksOf(test, device, curves, devices);
    const main = curves.find((curve) => marks.some((mark) => mark.kind === curve.kind));
    if (main) curves.splice(0, 0, ...curves.splice(curves.indexOf(main), 1));
    return { device, curves, marks, held: heldOn(test, device), cap: (test.devices || []).includes(device) ? test.cap : undefined };
  });
  const weight = (chart) => (chart.marks.some((mark) => mark.broken) ? 0 : chart.marks.length ? 1 : 2);
  return charts.sort((one, other) => weight(one) - weight(other));
}

/** What is held at the end, and a request that may never have been had, are no heights of a curve. */
const NO_LEVELS = ["max_leak", "allocator_warmup"];

/** What is told without what was there before: here it stands on that. */
const ON_BASE = ["max_host_peak", "baseline"];

/** The peaks and limits that belong to a device's curves. */
function marksOf(test, device, curves, devices) {
  const known = (result) => devices.has(result.device) ? result.device : devices.has(LIKE[result.device]) ? LIKE[result.device] : null;
  const only = devices.size === 1 ? device : null; // an out-of-memory names no device
  return test.results
    .filter((result) => !NO_LEVELS.includes(result.check) && result.measured !== undefined)
    .filter((result) => (result.device ? known(result) : only) === device)
    .map((result) => {
      const base = ON_BASE.includes(result.check) ? result.base || 0 : 0;
      return {
        kind: result.kind || curves[0].kind,
        peak: base + result.measured,
        limit: result.limit && base + result.limit.bytes,
        how: manner(result.how),
        broken: result.verdict === "fail",
        check: result.check,
      };
    });
}

/** What a leak left on a device. */
function heldOn(test, device) {
  const leak = test.results.find((result) => result.check === "max_leak" && result.device === device);
  return leak && leak.measured > 0 ? { bytes: leak.measured, broken: leak.verdict === "fail" } : null;
}

function drawTimeline(place, chart, colours) {
  const { curves, marks, cap } = chart;
  const first = curves[0];
  const end = Math.max(...curves.map((curve) => curve.seconds[curve.seconds.length - 1]), 1e-6);
  const highest = Math.max(1, ...curves.flatMap((curve) => [curve.bytes.reduce((a, b) => Math.max(a, b), 0)]), ...marks.map((mark) => mark.peak));
  // A limit far above would press the curve flat: it is told at the edge then.
  const near = (level) => level !== undefined && level !== null && level <= 3 * highest;
  const lines = [...marks.map((mark) => mark.limit), cap].filter(near);
  const top = 1.12 * Math.max(highest, ...lines);
  const traces = curves.map((curve, index) => ({
    type: "scatter",
    mode: curve.seconds.length > 1 ? "lines" : "markers",
    name: plain(curve.kind),
    x: curve.seconds,
    y: curve.bytes,
    line: { shape: "hv", width: index ? 1 : 1.75, color: index ? colours.faint : colours.curve, dash: index ? "dot" : "solid" },
    fill: index ? "none" : "tozeroy",
    fillcolor: colours.fill,
    hoverinfo: "text",
    hovertext: curve.bytes.map((count, at) => plain(`${size(count)} ${curve.kind} at ${curve.seconds[at].toPrecision(3)} s`)),
  }));
  const shapes = [];
  const notes = [];
  const across = (level, colour, dash, width) =>
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: level, y1: level, line: { color: colour, dash, width } });
  const told = (level, text, colour, side, above = true) =>
    notes.push({
      xref: "paper", x: side === "left" ? 0 : 1, xanchor: side, y: level, yanchor: above ? "bottom" : "top",
      text: plain(text), showarrow: false, font: { color: colour, size: 12 }, bgcolor: colours.veil, borderpad: 1,
    });
  bands(first.phases || [], end, shapes, notes, colours);
  const limits = new Set();
  for (const mark of marks) {
    traces.push(peakTrace(mark, curves.find((curve) => curve.kind === mark.kind) || first, colours));
    across(mark.peak, mark.broken ? colours.red : colours.ink, "dot", 1);
    told(mark.peak, `peak ${size(mark.peak)}, ${mark.how || "exact"}`, mark.broken ? colours.red : colours.ink, "left", mark.limit === undefined || mark.peak >= mark.limit || mark.limit > top);
    if (mark.limit === undefined || limits.has(mark.limit)) continue;
    limits.add(mark.limit);
    if (mark.limit > top) {
      told(top, `limit ${size(mark.limit)}, above this picture`, colours.limit, "right", false);
      continue;
    }
    across(mark.limit, colours.limit, "solid", 1.5);
    told(mark.limit, `limit ${size(mark.limit)}`, colours.limit, "right", mark.peak < mark.limit);
    shapes.push({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: mark.limit, y1: top, line: { width: 0 }, fillcolor: colours.over, layer: "below" });
  }
  if (chart.held) {
    const colour = chart.held.broken ? colours.red : colours.muted;
    notes.push({
      x: end, y: first.bytes[first.bytes.length - 1], xanchor: "right", ax: -14, ay: -34, arrowcolor: colour, arrowwidth: 1, arrowhead: 3,
      text: plain(`${size(chart.held.bytes)} more than before`), font: { color: colour, size: 12 }, bgcolor: colours.veil, borderpad: 1,
    });
  }
  if (near(cap)) {
    across(cap, colours.faint, "dash", 1);
    told(cap, `the card's cap ${size(cap)}`, colours.muted, "left");
  }
  const layout = {
    ...plotlyLook(colours),
    height: 280,
    margin: { l: 74, r: 14, t: 22, b: 34 },
    shapes,
    annotations: notes,
    showlegend: curves.length > 1,
    legend: { orientation: "h", y: -0.16, x: 1, xanchor: "right", font: { color: colours.muted } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    xaxis: { range: [0, end], ticksuffix: " s", color: colours.muted, gridcolor: colours.line, zeroline: false, showgrid: false, nticks: 8 },
    yaxis: { range: [0, top], ...ticks(top), color: colours.muted, gridcolor: colours.line, zeroline: false, fixedrange: true },
  };
  return Plotly.newPlot(place, traces, layout, plotlyWays());
}

/** At the highest sample, and as high as it was: between two samples nobody looked. */
function peakTrace(mark, curve, colours) {
  let at = 0;
  curve.bytes.forEach((count, index) => {
    if (count > curve.bytes[at]) at = index;
  });
  return {
    type: "scatter",
    mode: "markers",
    name: "peak",
    showlegend: false,
    x: [curve.seconds[at]],
    y: [mark.peak],
    marker: { symbol: "diamond", size: 9, color: mark.broken ? colours.red : colours.ink },
    hoverinfo: "text",
    hovertext: [plain(`peak of ${mark.check}: ${size(mark.peak)} (${exact(mark.peak)}), ${mark.how || "exact"}`)],
    cliponaxis: false,
  };
}

function bands(phases, end, shapes, notes, colours) {
  phases.forEach(([phase, begin], index) => {
    const until = index + 1 < phases.length ? phases[index + 1][1] : end;
    if (until <= begin) return;
    if (phase !== "call") {
      shapes.push({ type: "rect", yref: "paper", x0: begin, x1: until, y0: 0, y1: 1, line: { width: 0 }, fillcolor: colours.band, layer: "below" });
    }
    if (index) {
      shapes.push({ type: "line", yref: "paper", x0: begin, x1: begin, y0: 0, y1: 1, line: { color: colours.faint, width: 1, dash: "dot" }, layer: "below" });
    }
    if (until - begin > 0.07 * end) {
      notes.push({ x: (begin + until) / 2, yref: "paper", y: 1, yanchor: "bottom", text: plain(PHASES[phase] || phase), showarrow: false, font: { color: colours.muted, size: 11 } });
    }
  });
}

/** Round in powers of two: 0, 512 MiB, 1 GiB. */
function ticks(top) {
  let step = 1;
  while (top / step > 8) step *= 2;
  if (top / step < 4 && step > 1) step /= 2;
  const tickvals = [];
  for (let level = 0; level <= top; level += step) tickvals.push(level);
  return { tickmode: "array", tickvals, ticktext: tickvals.map((level) => (level ? size(level) : "0")) };
}
