// A document, whole and among its neighbours; a span of it can be marked and traced.

import { call } from "./api.js";
import { append, appendText, el, fill, line, placeOf } from "./dom.js";
import { influenceMarks, paintText } from "./paint.js";
import { counted, valueInWords } from "./words.js";

const NEIGHBOURS = 2; // passages shown on either side
const CHARACTERS_PER_TOKEN = 4; // on average, in English; only bounds what is sent

const ENDS_A_WORD = /[\s,.;:!?)\]}»”’]/;

/** Start and end of a marked span, moved out to whole words. */
export function wholeWords(characters, start, end) {
  let [from, to] = [start, end];
  while (from < to && ENDS_A_WORD.test(characters[from])) from += 1;
  while (to > from && /\s/.test(characters[to - 1])) to -= 1;
  if (from === to) return null;
  while (from > 0 && !/\s/.test(characters[from - 1])) from -= 1;
  while (to < characters.length && !/\s/.test(characters[to])) to += 1;
  return [from, to];
}

/**
 * The question that a span of a text asks: the span, given the text before it.
 *
 * A space before the span belongs to it, as it does for tokenizers; the prompt is cut, between
 * words, to the last `most` characters.
 */
export function questionOfSpan(characters, [start, end], most) {
  const from = start > 0 && characters[start - 1] === " " ? start - 1 : start;
  let first = Math.max(0, from - most);
  while (first > 0 && first < from && !/\s/.test(characters[first - 1])) first += 1;
  const text = (a, b) => characters.slice(a, b).join("");
  return { prompt: text(first, from), completion: text(from, end) };
}

/** The dialog that documents are read in. */
export class Reader {
  /**
   * `ask` is given the prompt and completion of a marked span, `read` the id of a document to open;
   * `context` is the model's, in tokens.
   */
  constructor(dialog, { ask, read, context }) {
    this.dialog = dialog;
    this.ask = ask;
    this.read = read;
    this.most = (context ?? 512) * CHARACTERS_PER_TOKEN;
    this.part = (name) => dialog.querySelector(`[data-part="${name}"]`);
    this.text = this.part("text");
    this.part("close").addEventListener("click", () => dialog.close());
    this.part("trace").addEventListener("click", () => this.trace());
    // A press on the button would else clear what is marked.
    this.part("trace").addEventListener("mousedown", (event) => event.preventDefault());
    this.text.addEventListener("keydown", (event) => this.onKey(event));
    document.addEventListener("selectionchange", () => this.showSpan());
    dialog.addEventListener("close", () => {
      this.shown = null;
      getSelection().removeAllRanges();
    });
  }

  /** Opens a document by its id; `tokens` are shares of it, where they are known. */
  async open(docId, tokens = null) {
    const found = await call(`v1/document?doc_id=${encodeURIComponent(docId)}`);
    this.show(found, tokens);
    if (!this.dialog.open) this.dialog.showModal();
    this.text.focus();
    this.text.scrollIntoView({ block: "nearest" });
    await this.showNeighbours(found);
  }

  show(found, tokens) {
    this.shown = found;
    this.characters = Array.from(found.text);
    fill(this.part("title"), el("bdi", {}, line(found.doc_id)));
    const entries = [
      ...Object.entries(found.metadata).map(([name, value]) => [name, valueInWords(value)]),
      ["scored tokens", counted(found.tokens)],
      ["content hash", found.content_hash],
    ];
    if (found.parent_id !== null) entries.unshift(["passage of", found.parent_id]);
    const shown = ([name, value]) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, el("bdi", {}, line(value))));
    fill(this.part("metadata"), entries.map(shown));
    fill(this.text);
    const marks = tokens ? influenceMarks(this.characters, tokens) : [];
    paintText(this.text, this.characters, [0, this.characters.length], marks);
    for (const side of ["before", "after"]) fill(this.part(side));
    this.showSpan();
  }

  /** Shows the passages of the same document before and after this one. */
  async showNeighbours(found) {
    if (found.parent_id === null) return;
    const { position, parent_id: parent } = found;
    const offset = Math.max(0, position - NEIGHBOURS);
    const limit = position + NEIGHBOURS + 1 - offset;
    const around = await call("v1/documents", { offset, limit });
    if (this.shown !== found) return;
    for (const passage of around.documents) {
      if (passage.parent_id !== parent || passage.position === position) continue;
      const earlier = passage.position < position;
      const characters = Array.from(passage.text);
      const text = el("p", { dir: "auto" });
      appendText(text, characters, 0, characters.length);
      const open = el(
        "button",
        { type: "button", class: "quiet", on: { click: () => this.read(passage.doc_id) } },
        earlier ? "↑ " : "↓ ",
        el("bdi", {}, line(passage.doc_id)),
      );
      append(this.part(earlier ? "before" : "after"), el("div", {}, open, text));
    }
  }

  /** The marked span of the text, as whole words; null if none is. */
  span() {
    const selection = getSelection();
    if (!this.shown || selection.isCollapsed || selection.rangeCount === 0) return null;
    const range = selection.getRangeAt(0);
    if (!this.text.contains(range.commonAncestorContainer)) return null;
    const start = placeOf(range.startContainer, range.startOffset);
    const end = placeOf(range.endContainer, range.endOffset);
    return start === null || end === null ? null : wholeWords(this.characters, start, end);
  }

  showSpan() {
    if (!this.shown) return;
    const span = this.span();
    this.part("trace").disabled = span === null;
    const words = span && line(this.characters.slice(...span).join(""));
    const short = words?.length > 90 ? `${words.slice(0, 89)}…` : words;
    fill(
      this.part("span"),
      span
        ? ["Marked: “", el("bdi", {}, short), "”"]
        : "Mark a span with the mouse, or with Shift and the arrow keys, to trace it.",
    );
  }

  /** Words are marked by arrow keys: there is no caret in text that cannot be edited. */
  onKey(event) {
    const keys = { ArrowRight: "forward", ArrowLeft: "backward" };
    if (event.key === "Enter") {
      this.trace();
      return;
    }
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    const selection = getSelection();
    const inside = selection.rangeCount > 0 && this.text.contains(selection.anchorNode);
    if (!inside) selection.collapse(this.text, 0);
    else if (!event.shiftKey) {
      if (event.key === "ArrowRight") selection.collapseToEnd();
      else selection.collapseToStart();
    }
    selection.modify("extend", keys[event.key], "word");
  }

  trace() {
    const span = this.span();
    if (span === null) return;
    const asked = questionOfSpan(this.characters, span, this.most);
    this.dialog.close();
    this.ask(asked);
  }
}
