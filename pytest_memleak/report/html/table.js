// The table of verdicts: sorted, filtered, and opened row by row.

const VERDICTS = ["failed", "would fail", "inconclusive", "not judged", "passed", "read", "not asked"];
const CLASSES = { failed: "red", fail: "red", "would fail": "red", inconclusive: "amber", "not judged": "amber", passed: "green", pass: "green" };
const classOf = (verdict) => CLASSES[verdict] || "grey";

const COLUMNS = [
  { name: "test", by: (row) => row.nodeid },
  { name: "verdict", by: (row) => VERDICTS.indexOf(row.verdict) },
  { name: "check", by: (row) => row.check || "" },
  { name: "measured", by: (row) => row.measured, number: true },
  { name: "limit", by: (row) => row.limit, number: true },
  { name: "of limit", by: (row) => row.used, most: true },
  { name: "how", by: (row) => manner(row.how) },
  { name: "card", by: (row) => row.card },
  { name: "time", by: (row) => row.seconds, number: true },
];

/** What broke without a limit to be measured by was refused: as bad as anything. */
const beyond = (row) => (row.used === null ? (classOf(row.verdict) === "red" ? Infinity : -1) : row.used);

/** Red first, and the furthest beyond its limit first of all. */
const URGENCY = (one, other) =>
  VERDICTS.indexOf(one.verdict) - VERDICTS.indexOf(other.verdict) ||
  compared(beyond(other), beyond(one)) ||
  one.number - other.number;

/** What is missing comes last, whichever way it is sorted. */
function compared(one, other) {
  if (one === other) return 0;
  return one < other ? -1 : 1;
}

const filled = (value) => (value === undefined ? " empty" : "");

class Table {
  constructor(rows) {
    this.rows = rows;
    this.body = document.querySelector("#tests tbody");
    this.sorted = { column: null, down: false };
    this.chosen = new Set();
    this.fill();
    this.head();
    this.tools();
    this.order();
    this.filter();
  }

  fill() {
    for (const row of this.rows) {
      row.used = share(row.measured, row.limit);
      row.shown = this.line(row);
      row.words = [row.nodeid, row.verdict, row.check, row.how, row.worker, row.card !== undefined && OVERVIEW.cards[row.card][0]].filter(Boolean).join(" ").toLowerCase();
    }
  }

  line(row) {
    const cut = row.nodeid.indexOf("::");
    const file = cut < 0 ? "" : row.nodeid.slice(0, cut + 2);
    row.button = element("button", { "aria-expanded": "false", type: "button" }, file ? element("small", {}, breakable(file)) : null, element("span", {}, breakable(row.nodeid.slice(file.length))));
    const broken = classOf(row.verdict) === "red";
    return element("tr", { class: `test ${classOf(row.verdict)}`, onclick: (event) => this.clicked(event, row) },
      element("td", { class: "name" }, row.button, row.worker ? element("span", { class: "tag" }, row.worker) : null, row.attempt ? element("span", { class: "tag" }, `attempt ${row.attempt}`) : null),
      element("td", { class: "verdict" }, element("span", {}, row.verdict)),
      element("td", { class: "check" }, row.check || "–", row.results > 1 ? element("span", { class: "tag", title: `${row.results} results, the most telling is shown` }, `+${row.results - 1}`) : null),
      element("td", { class: `number measured${filled(row.measured)}` }, row.measured === undefined ? "–" : size(row.measured)),
      element("td", { class: `number limit${filled(row.limit)}` }, row.limit === undefined ? "–" : size(row.limit)),
      element("td", { class: "share" }, bar(row.used, broken), row.used === null ? "" : element("span", {}, percent(row.used))),
      element("td", { class: "how", title: row.how || null }, manner(row.how)),
      element("td", { class: "card" }, row.card === undefined ? "–" : shortCard(row.card).replace(/cap (\S+) /, "cap\u00a0$1\u00a0")),
      element("td", { class: `number time${filled(row.seconds || undefined)}` }, duration(row.seconds)));
  }

  head() {
    const cells = COLUMNS.map((column) => {
      column.button = element("button", { type: "button", onclick: () => this.sort(column) }, column.name);
      column.cell = element("th", { scope: "col", class: `${column.number ? "number " : ""}${column.name.replace(" ", "-")}` }, column.button);
      return column.cell;
    });
    document.querySelector("#tests thead tr").replaceChildren(...cells);
  }

  tools() {
    const counts = new Map();
    for (const row of this.rows) counts.set(row.verdict, (counts.get(row.verdict) || 0) + 1);
    this.chips = VERDICTS.filter((verdict) => counts.has(verdict)).map((verdict) =>
      element("button", { type: "button", class: `chip ${classOf(verdict)}`, "aria-pressed": "false", onclick: (event) => this.choose(verdict, event.currentTarget) }, element("b", {}, counts.get(verdict).toLocaleString("en-US")), ` ${verdict}`));
    document.getElementById("verdicts").replaceChildren(...this.chips);
    this.search = document.getElementById("search");
    this.search.addEventListener("input", () => this.filter());
    this.cards = choices("cards", "all cards", OVERVIEW.cards.map(([, short], index) => [index, short]), () => this.filter());
    const workers = [...new Set(this.rows.map((row) => row.worker).filter(Boolean))].sort((one, other) => one.localeCompare(other, "en", { numeric: true }));
    this.workers = choices("workers", "all workers", workers.map((name) => [name, name]), () => this.filter());
    document.getElementById("tests").classList.toggle("one-card", OVERVIEW.cards.length < 2);
    document.getElementById("tools").hidden = document.getElementById("tests").hidden = !this.rows.length;
  }

  choose(verdict, chip) {
    if (!this.chosen.delete(verdict)) this.chosen.add(verdict);
    chip.setAttribute("aria-pressed", String(this.chosen.has(verdict)));
    this.filter();
  }

  sort(column) {
    const again = this.sorted.column === column;
    // Amounts are sorted from the top at first; a third click brings back the order of urgency.
    const first = Boolean(column.number || column.most);
    if (!again) this.sorted = { column, down: first };
    else if (this.sorted.down === first) this.sorted = { column, down: !first };
    else this.sorted = { column: null, down: false };
    this.order();
  }

  order() {
    const { column, down } = this.sorted;
    const missing = (value) => value === undefined || value === null;
    const by = (one, other) => {
      const [left, right] = [column.by(one), column.by(other)];
      if (missing(left) || missing(right)) return Number(missing(left)) - Number(missing(right)) || URGENCY(one, other);
      return (down ? -1 : 1) * compared(left, right) || URGENCY(one, other);
    };
    this.rows.sort(column ? by : URGENCY);
    for (const each of COLUMNS) {
      if (each === column) each.cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      else each.cell.removeAttribute("aria-sort");
    }
    this.body.replaceChildren(...this.rows.flatMap((row) => (row.panel ? [row.shown, row.panel] : [row.shown])));
  }

  filter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of this.rows) {
      const fits =
        (!this.chosen.size || this.chosen.has(row.verdict)) &&
        (!this.cards.value || String(row.card) === this.cards.value) &&
        (!this.workers.value || row.worker === this.workers.value) &&
        words.every((word) => row.words.includes(word));
      count += fits;
      row.shown.hidden = !fits;
      if (row.panel) row.panel.hidden = !fits;
    }
    document.getElementById("shown").textContent = count === this.rows.length ? "" : `${count.toLocaleString("en-US")} of ${plural(this.rows.length, "test")}`;
    const none = document.getElementById("none");
    none.hidden = count > 0;
    none.textContent = this.rows.length ? "No test fits." : "No test of this run had its memory measured.";
  }

  showAll() {
    this.chosen.clear();
    this.chips.forEach((chip) => chip.setAttribute("aria-pressed", "false"));
    this.search.value = this.cards.value = this.workers.value = "";
    this.filter();
  }

  clicked(event, row) {
    if (!event.target.closest("button") && String(getSelection())) return; // somebody copies a name
    this.toggle(row);
  }

  toggle(row) {
    if (row.panel) this.close(row);
    else this.open(row);
    // Without a step in the browser's history, and without a jump.
    history.replaceState(null, "", row.panel ? linkTo(row) : location.pathname + location.search);
  }

  open(row) {
    if (row.panel) return;
    const { shown, drawAll } = panel(row);
    row.panel = element("tr", { class: `opened ${classOf(row.verdict)}` }, element("td", { colspan: COLUMNS.length }, shown));
    row.shown.after(row.panel);
    row.shown.classList.add("open");
    row.button.setAttribute("aria-expanded", "true");
    // The texts are seen before the charts are there.
    requestAnimationFrame(() => setTimeout(() => row.panel && drawAll()));
  }

  close(row) {
    forget(row.panel);
    row.panel.remove();
    row.panel = null;
    row.shown.classList.remove("open");
    row.button.setAttribute("aria-expanded", "false");
  }
}

const shortCard = (index) => OVERVIEW.cards[index][1];

function choices(id, all, options, changed) {
  const select = document.getElementById(id);
  select.replaceChildren(element("option", { value: "" }, all), ...options.map(([value, text]) => element("option", { value }, text)));
  select.hidden = options.length < 2;
  select.addEventListener("change", changed);
  return select;
}
