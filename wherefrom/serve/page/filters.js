// Filters on metadata: a row each of column, operator and value, as typed as the columns are.

import { append, el, fill } from "./dom.js";
import { pairsOf } from "./words.js";

const OPERATORS = {
  string: ["=", "≠", "contains", "in", "not in", "<", "≤", ">", "≥", "is missing", "is present"],
  number: ["=", "≠", "<", "≤", ">", "≥", "in", "not in", "is missing", "is present"],
  bool: ["=", "≠", "is missing", "is present"],
};
const SENT = { "=": "==", "≠": "!=", "≤": "<=", "≥": ">=" };
const SHOWN = Object.fromEntries(Object.entries(SENT).map(([shown, sent]) => [sent, shown]));
const NUMBERS = ["int64", "float64"];
const LISTS = ["in", "not in"];
const VALUELESS = ["is missing", "is present"];

let lists = 0; // of suggestions, each with an id of its own

/** The rows of filters within `container`. */
export class Filters {
  /** `columns`: the type of each by its name. */
  constructor(container, columns) {
    this.columns = new Map(Object.entries(columns));
    this.seen = new Map(Object.keys(columns).map((name) => [name, new Set()]));
    this.rows = el("div", { class: "filter-rows" });
    const add = el(
      "button",
      { type: "button", class: "quiet", on: { click: () => this.add().focus() } },
      "+ Add a filter",
    );
    const none = el("p", {}, "This index has no metadata.");
    fill(container, this.rows, this.columns.size ? add : none);
  }

  /** The filter as the service takes it. */
  read() {
    const where = {};
    for (const row of this.rows.children) {
      const [column, operator, value] = row.condition();
      (where[column] ??= []).push([operator, value]);
    }
    return where;
  }

  /** Shows a filter of the service's form; columns that the index lacks are left out. */
  write(where) {
    this.rows.replaceChildren();
    for (const [column, condition] of Object.entries(where)) {
      for (const [operator, value] of pairsOf(condition)) {
        if (this.columns.has(column)) this.add(column, operator, value);
      }
    }
  }

  /** Remembers values of documents that were seen, to suggest them. */
  remember(metadata) {
    for (const [name, value] of Object.entries(metadata)) {
      if (value !== null) this.seen.get(name)?.add(value);
    }
  }

  /** Adds a row and returns its first control. */
  add(column = this.columns.keys().next().value, operator = "==", value = "") {
    const row = el("div", { class: "filter", role: "group", "aria-label": "Filter" });
    const names = [...this.columns.keys()].map((name) => el("option", { value: name }, name));
    const chosen = el("select", { "aria-label": "Column" }, names);
    const operators = el("select", { "aria-label": "Operator" });
    const slot = el("span", { class: "filter-value" });
    const remove = el("button", {
      type: "button",
      class: "icon",
      "aria-label": "Remove this filter",
      on: { click: () => row.remove() },
    });
    append(remove, "×");
    append(row, chosen, operators, slot, remove);
    this.rows.append(row);

    const type = () => this.columns.get(chosen.value);
    const showValue = (shown) =>
      fill(slot, valueField(type(), operators.value, shown, this.seen.get(chosen.value)));
    const showOperators = (selected) => {
      const known = OPERATORS[NUMBERS.includes(type()) ? "number" : type()];
      fill(operators, known.map((name) => el("option", { value: name }, name)));
      operators.value = known.includes(selected) ? selected : known[0];
    };
    chosen.value = column;
    showOperators(shownOperator(operator, value));
    showValue(value);
    chosen.addEventListener("change", () => {
      showOperators(operators.value);
      showValue("");
    });
    operators.addEventListener("change", () => showValue(slot.firstElementChild?.value ?? ""));
    row.condition = () => {
      if (operators.value === "is missing") return [chosen.value, "==", null];
      if (operators.value === "is present") return [chosen.value, "!=", null];
      const read = readValue(type(), operators.value, slot.firstElementChild.value);
      return [chosen.value, SENT[operators.value] ?? operators.value, read];
    };
    return chosen;
  }
}

function shownOperator(operator, value) {
  if (value === null) return operator === "==" ? "is missing" : "is present";
  return SHOWN[operator] ?? operator;
}

function valueField(type, operator, value, seen) {
  if (VALUELESS.includes(operator)) return null;
  if (type === "bool") {
    const options = ["true", "false"].map((truth) => el("option", { value: truth }, truth));
    const field = el("select", { "aria-label": "Value" }, options);
    field.value = value === false || value === "false" ? "false" : "true";
    return field;
  }
  const list = LISTS.includes(operator);
  const known = seen.size > 0 && !list ? `known-values-${(lists += 1)}` : null;
  const field = el("input", {
    "aria-label": list ? "Values, separated by commas" : "Value",
    placeholder: list ? "one, another" : null,
    required: true,
    type: NUMBERS.includes(type) && !list ? "number" : "text",
    step: type === "int64" ? "1" : "any",
    list: known,
  });
  field.value = Array.isArray(value) ? written(value) : value;
  if (known === null) return field;
  const options = [...seen].sort().map((value) => el("option", { value }));
  return [field, el("datalist", { id: known }, options)];
}

function readValue(type, operator, text) {
  if (LISTS.includes(operator)) return items(text).map((item) => typed(type, item));
  return typed(type, text);
}

function typed(type, text) {
  if (type === "bool") return text === "true";
  if (!NUMBERS.includes(type)) return text;
  const number = Number(text);
  // What is no number is sent as it is: the service says what is wrong with it.
  return text.trim() === "" || Number.isNaN(number) ? text : number;
}

/** Values separated by commas, quoted as in CSV where they hold one. */
function items(text) {
  const found = text.matchAll(/\s*(?:"((?:[^"]|"")*)"\s*|([^,]*))(?:,|$)/g);
  return [...found]
    .map(([, inQuotes, bare]) => inQuotes?.replaceAll('""', '"') ?? bare.trim())
    .filter((item, at, all) => item !== "" || at < all.length - 1);
}

function written(values) {
  return values
    .map((value) => (/[",]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value))
    .join(", ");
}
