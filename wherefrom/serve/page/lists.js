// Beside the hits: what is most alike in words, and influence summed by metadata.

import { append, el, fill, line } from "./dom.js";
import { counted, percent, signed, valueInWords } from "./words.js";

const ENDS_SHOWN = 12; // groups of the largest sums, and of the smallest, where there are more

/**
 * The documents most like the question in words, with the influence that they have; `leastRun`: words
 * of a shared run that is worth telling.
 */
export function mostSimilar(similarity, leastRun, open) {
  const rows = similarity.most_similar.map((found) => {
    const text = line(found.text);
    const short = text.length > 220 ? `${text.slice(0, 219)}…` : text;
    const facts = [
      `BM25 rank ${counted(found.bm25_rank)}`,
      `${signed(found.score)} nats`,
      found.percentile === null ? null : `percentile ${percent(found.percentile)}`,
      found.shared_words >= leastRun ? `${counted(found.shared_words)} shared words` : null,
    ];
    const name = el(
      "button",
      { type: "button", class: "value", on: { click: () => open(found.doc_id) } },
      el("bdi", {}, line(found.doc_id)),
    );
    return el(
      "li",
      { class: "similar" },
      el("p", { class: "similar-head" }, name, ` ${facts.filter(Boolean).join(" · ")}`),
      found.flag ? el("p", { class: "flag" }, found.flag) : null,
      el("p", { class: "hit-text", dir: "auto" }, short),
    );
  });
  return el("ol", { class: "similar-list" }, rows);
}

/** Sums by a metadata column as bars with their intervals; of very many groups, both ends. */
export function sums(grouping) {
  const { column, groups: all, confidence, draws, tier } = grouping;
  const hidden = all.length > 2 * ENDS_SHOWN ? all.length - 2 * ENDS_SHOWN : 0;
  const groups = hidden ? [...all.slice(0, ENDS_SHOWN), ...all.slice(-ENDS_SHOWN)] : all;
  const ends = groups.flatMap(({ low, high, total }) => [low, high, total]);
  const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
  const at = (value) => `${(100 * (value - least)) / (most - least || 1)}%`;
  const rows = groups.map((group) => {
    const [from, to] = [Math.min(0, group.total), Math.max(0, group.total)];
    const wide = `calc(${at(to)} - ${at(from)})`;
    const spread = `calc(${at(group.high)} - ${at(group.low)})`;
    const chart = el(
      "div",
      { class: "sum-chart", "aria-hidden": "true", style: { "--zero": at(0) } },
      el("div", {
        class: group.total < 0 ? "sum lowers" : "sum raises",
        style: { "--from": at(from), "--wide": wide },
      }),
      el("div", { class: "spread", style: { "--from": at(group.low), "--wide": spread } }),
    );
    const interval = `${signed(group.low)} to ${signed(group.high)}`;
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, el("bdi", {}, line(valueInWords(group.value)))),
      el("td", { class: "chart" }, chart),
      el("td", { class: "number" }, signed(group.total)),
      el("td", { class: "number faint" }, group.documents === 1 ? "–" : interval),
      el("td", { class: "number faint" }, counted(group.documents)),
    );
  });
  if (hidden) {
    const between = el("td", { colspan: 5, class: "faint" }, `and ${counted(hidden)} more between`);
    rows.splice(ENDS_SHOWN, 0, el("tr", {}, between));
  }
  const heads = [column, "", "nats", `${Math.round(100 * confidence)} % interval`, "documents"];
  const head = el("tr", {}, heads.map((name) => el("th", { scope: "col" }, name)));
  const note =
    `Sums of ${tier} scores; ${Math.round(100 * confidence)} % intervals by ${counted(draws)} ` +
    "bootstrap draws of the documents of each group.";
  const table = el("table", { class: "sum-table" }, el("thead", {}, head), el("tbody", {}, rows));
  return [el("p", { class: "note" }, note), el("div", { class: "scroll" }, table)];
}

/** The panel of sums: a choice of columns above, `load(column)` fetches what was not asked for. */
export class Sums {
  constructor(columns, load) {
    this.load = load;
    this.shown = el("div", { "aria-live": "polite" });
    const options = ["", ...columns].map((name) =>
      el("option", { value: name }, name === "" ? "choose a column" : name),
    );
    this.choice = el("select", { id: "sum-by" }, options);
    this.choice.addEventListener("change", () => this.choose());
    const label = el("label", { for: "sum-by" }, "Sum influence by ");
    this.element = append(el("div", { class: "sums-panel" }), label, this.choice, this.shown);
  }

  /** Shows a grouping. */
  show(grouping) {
    this.choice.value = grouping.column;
    fill(this.shown, sums(grouping));
  }

  async choose() {
    const column = this.choice.value;
    fill(this.shown, column === "" ? null : el("p", { class: "note busy" }, "Summing …"));
    if (column === "") return;
    const grouping = await this.load(column);
    if (this.choice.value !== column) return;
    if (grouping === null) fill(this.shown);
    else this.show(grouping);
  }
}
