// The head of the page, links to tests, and keys.

const wellFormed = (text) => (text.toWellFormed ? text.toWellFormed() : text.replace(/[\ud800-\udfff]/gu, "\ufffd"));

/** Workers that ran the same test have links of their own. */
function linkTo(row) {
  const several = row.worker && OVERVIEW.tests.some((other) => other.nodeid === row.nodeid && other.worker !== row.worker);
  return `#${encodeURIComponent(wellFormed(row.nodeid + (several ? `@${row.worker}` : "")))}`;
}

function head() {
  const { run, totals, silent, cards, predicted, tests } = OVERVIEW;
  const report = run.mode === "report";
  const bad = totals.failed + totals.inconclusive + totals.would_fail;
  const parts = [
    totals.failed && `${totals.failed} failed`,
    totals.inconclusive && `${totals.inconclusive} inconclusive`,
    totals.would_fail && `${totals.would_fail} would fail`,
    totals.not_judged && `${totals.not_judged} not judged`,
  ].filter(Boolean);
  const verdict = !tests.length ? "Nothing was measured" : parts.length ? parts.join(", ") : report ? "None would fail" : "Every promise held";
  const of = !tests.length ? "" : ` of ${plural(tests.length, "test")}`;
  document.title = `${verdict}${parts.length ? of : ""} · memleak`;
  const versions = Object.entries(run.versions).map(([name, version]) => `${name} ${version}`).join(" · ");
  const facts = [
    ["started", `${run.started.replace("T", " ").replace("+00:00", " UTC")}, took ${duration(Math.max(0, (Date.parse(run.finished) - Date.parse(run.started)) / 1000))}`],
    ["mode", report ? "report: no limit fails a test" : run.mode],
    ["backend", run.backend],
    ["cap", run.cap === null ? "none" : size(run.cap)],
    ["cards", cards.length ? cards.map(([card]) => element("div", {}, card)) : "none"],
    ["totals", [`${totals.passed} passed`, ...parts, totals.reruns && plural(totals.reruns, "rerun")].filter(Boolean).join(" · ")],
    ["highest", totals.highest_peaks.map((one) => element("div", {}, `${size(one.bytes)} ${one.kind} on ${one.device} (${one.check}): `, element("code", {}, one.nodeid)))],
    ["command", element("code", {}, ["pytest", ...run.args].join(" "))],
    ["exit status", String(run.exit_status)],
    ["versions", versions],
  ];
  const shown = [
    element("div", { class: "title" },
      element("h1", { class: bad ? "red" : totals.not_judged || !tests.length ? "amber" : "green" }, verdict, element("small", {}, parts.length ? of : tests.length ? ` · ${plural(tests.length, "test")}` : "")),
      element("p", { class: "brand" }, "memleak")),
    predicted ? element("p", { class: "banner predicted" }, element("b", {}, "Predicted, not measured: "), predicted === tests.length ? "the card of this run is simulated, and so are all its numbers." : `${plural(predicted, "test")} ran on a simulated card; all numbers of theirs are predictions.`) : null,
    silent.length ? element("p", { class: "banner red" }, element("b", {}, `Fell silent: ${silent.join(", ")}. `), "What had finished there is on this page; what was running there was not judged.") : null,
    element("details", { class: "run" },
      element("summary", {}, [`backend ${run.backend}`, run.cap === null ? null : `cap ${size(run.cap)}`, report ? "report mode" : null, versions].filter(Boolean).join(" · ")),
      element("dl", { class: "facts" }, facts.filter(([, value]) => value.length !== 0).map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]))),
  ];
  document.getElementById("head").append(...shown.filter(Boolean));
}

/** The test that the address names, if any; a damaged address names none. */
function follow(table) {
  let wanted;
  try {
    wanted = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;
  }
  if (!wanted) return;
  const row = table.rows.find((one) => decodeURIComponent(linkTo(one).slice(1)) === wanted || wellFormed(one.nodeid) === wanted);
  if (!row) return;
  if (row.shown.hidden) table.showAll();
  table.open(row);
  row.shown.scrollIntoView({ block: "start" });
  row.button.focus({ preventScroll: true });
}

function keys(table) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const typing = event.target.closest && event.target.closest("input, select, textarea");
    if (event.key === "/" && !typing) {
      event.preventDefault();
      table.search.focus();
    }
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const rows = table.rows.filter((row) => !row.shown.hidden);
    const at = rows.findIndex((row) => row.button === document.activeElement);
    const next = rows[event.key === "ArrowDown" ? at + 1 : at - 1];
    if (next && (at >= 0 || (event.target === table.search && event.key === "ArrowDown"))) {
      event.preventDefault();
      next.button.focus();
    }
  });
}

OVERVIEW.tests.forEach((row, number) => (row.number = number));
head();
const table = new Table([...OVERVIEW.tests]);
keys(table);
follow(table);
// Running plotly takes a moment: the one after the table is there is free.
if (OVERVIEW.charts) (window.requestIdleCallback || setTimeout)(() => ready().catch(() => {}));
addEventListener("hashchange", () => follow(table));
