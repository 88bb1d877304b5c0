// What was alive at a peak: by the file and the line that allocated it, as areas and as a list.

const HUES = [212, 168, 32, 268, 340, 190, 96, 12];

/** Bytes, blocks, line, by, example of each group; the last may stand for many. */
function groupsOf(result) {
  return (result.alive || []).map(([bytes, blocks, line, by, example]) =>
    line < 0
      ? { bytes, blocks, line: plural(-line, "other line"), by: "", example: "", many: true }
      : { bytes, blocks, line: OVERVIEW.lines[line], by: OVERVIEW.lines[by], example: OVERVIEW.lines[example] },
  );
}

const fileOf = (line) => line.replace(/:\d+$/, "");
const lineOf = (one, file) => (one.many || one.line === file ? one.line : `line ${one.line.slice(file.length + 1)}`);
const nameOf = (line) => line.replace(/^.*[\\/]/, "");

function drawTreemap(place, result, groups, colours, dark) {
  const nodes = { ids: ["all"], labels: [""], parents: [""], values: [0], text: [""], hovertext: [""], colors: ["rgba(0,0,0,0)"] };
  const add = (id, label, parent, value, text, hover, colour) => {
    nodes.ids.push(id);
    nodes.labels.push(plain(label));
    nodes.parents.push(parent);
    nodes.values.push(value);
    nodes.text.push(plain(text));
    nodes.hovertext.push(hover.filter(Boolean).map((line) => plain(line)).join("<br>"));
    nodes.colors.push(colour);
  };
  const tone = (hue, light) => (dark ? `hsl(${hue},32%,${light ? 30 : 23}%)` : `hsl(${hue},46%,${light ? 84 : 92}%)`);
  const files = new Map();
  for (const group of groups) {
    const file = group.many ? "" : fileOf(group.line);
    if (!files.has(file)) files.set(file, []);
    files.get(file).push(group);
  }
  let number = 0;
  [...files].forEach(([file, members], index) => {
    const hue = HUES[index % HUES.length];
    const total = members.reduce((sum, one) => sum + one.bytes, 0);
    const id = `f${index}`;
    add(id, file ? nameOf(file) : "other lines", "all", total, size(total), [file || "other lines", size(total)], file ? tone(hue, false) : colours.band);
    for (const one of members) {
      const hover = [one.line, `${size(one.bytes)} in ${plural(one.blocks, "block")}`, one.example, one.by && `asked for by ${one.by}`];
      add(`l${number++}`, lineOf(one, file), id, one.bytes, `${size(one.bytes)} in ${plural(one.blocks, "block")}`, hover, file ? tone(hue, true) : colours.band);
    }
  });
  const known = groups.reduce((sum, one) => sum + one.bytes, 0);
  const rest = result.check === "max_host_peak" ? 0 : (result.measured || 0) - known;
  if (rest > 0.005 * known) {
    add("rest", "no line is known", "all", rest, size(rest), [size(rest), "held before the test, or in blocks too small to ask for their lines"], colours.band);
  }
  nodes.values[0] = known + Math.max(0, rest > 0.005 * known ? rest : 0);
  const trace = {
    type: "treemap",
    branchvalues: "total",
    ids: nodes.ids,
    labels: nodes.labels,
    parents: nodes.parents,
    values: nodes.values,
    text: nodes.text,
    hovertext: nodes.hovertext,
    hoverinfo: "text",
    textinfo: "label+text",
    marker: { colors: nodes.colors, line: { color: colours.surface, width: 1.5 }, cornerradius: 3 },
    textfont: { color: colours.ink, size: 12 },
    pathbar: { visible: false },
    tiling: { pad: 1 },
    root: { color: "rgba(0,0,0,0)" },
    sort: true,
  };
  const layout = { ...plotlyLook(colours), height: 300, margin: { l: 0, r: 0, t: 2, b: 0 } };
  return Plotly.newPlot(place, [trace], layout, plotlyWays());
}

function aliveList(groups) {
  const row = (one) =>
    element("tr", {},
      element("td", { class: "number" }, size(one.bytes)),
      element("td", { class: "number" }, plural(one.blocks, "block")),
      element("td", { class: "wide" },
        element("code", {}, one.line),
        one.by ? element("div", { class: "from" }, "asked for by ", element("code", {}, one.by)) : null,
        one.example ? element("div", { class: "from" }, one.example) : null));
  const rows = groups.map(row);
  const few = element("table", { class: "plain" }, element("tbody", {}, rows.slice(0, 6)));
  if (rows.length <= 6) return few;
  const more = element("details", {}, element("summary", {}, `${plural(rows.length - 6, "more line")}`), element("table", { class: "plain" }, element("tbody", {}, rows.slice(6))));
  return [few, more];
}
