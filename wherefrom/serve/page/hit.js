// One hit of an answer, as a card.

import { append, el, fill, line } from "./dom.js";
import { influenceMarks, layerMap, paintText, sharedMarks, windowOf } from "./paint.js";
import { apart, partsInWords, partsOf, questionPartsOf } from "./shares.js";
import { band, counted, percent, signed, valueInWords } from "./words.js";

const RANKED = { none: "score", cosine: "cosine", relatif: "relatif" };
const UNITS = { none: "nats", cosine: "cosine", relatif: "nats per unit of norm" };

/** What a hit is ranked by. */
export function rankedValue(hit, normalise) {
  return hit[RANKED[normalise]];
}

/** The card of a document; what is known of it grows as the answer streams in. */
export class HitCard {
  /**
   * `view` is what the cards of an answer share: `answer`, `top` (of what hits are ranked by),
   * `paint` ("influence" or "shared"), `leastRun` (words of a shared run that is worth telling),
   * and `on`: what to do when something is clicked.
   */
  constructor(view) {
    this.view = view;
    this.open = false;
    this.head = el("div", { class: "hit-head" });
    this.flow = el("p", { class: "flow", hidden: true });
    this.text = el("p", { class: "hit-text", dir: "auto" });
    this.more = el("button", { type: "button", class: "quiet more", hidden: true });
    this.more.addEventListener("click", () => {
      this.open = !this.open;
      this.showText();
    });
    this.facts = el("div", { class: "hit-facts" });
    const parts = [this.head, this.flow, this.text, this.more, this.facts];
    this.element = el("li", { class: "hit" }, parts);
  }

  /** Shows the hit itself, by the scores that are known by now. */
  setHit(hit, sign) {
    if (hit.text !== this.hit?.text) this.characters = Array.from(hit.text);
    this.hit = hit;
    this.sign = sign;
    this.element.value = hit.rank;
    this.element.dataset.docId = hit.doc_id;
    this.element.setAttribute("aria-label", line(`${hit.rank}: ${hit.doc_id}`));
    this.showHead();
    this.showText();
    this.showFacts();
  }

  /** Shows what the score is made of. */
  setShares(shares, layers) {
    const question = shares.question?.map((one) => ({ ...one, tokens: apart(one.tokens) })) ?? null;
    this.shares = { ...shares, tokens: shares.tokens && apart(shares.tokens), question };
    this.parts = partsOf(shares.tokens, shares.elsewhere);
    this.questionParts = questionPartsOf(shares);
    this.layers = layers;
    this.showHead();
    this.showText();
    this.showFacts();
  }

  /** Shows how alike hit and question are in words; `others` are the hits of its cluster. */
  setSimilarity(similar, documents, others) {
    this.similar = similar;
    this.searched = documents;
    this.others = others;
    this.showText();
    this.showFacts();
  }

  /** The nats that go through some tokens of the texts asked about, by their keys. */
  through(keys) {
    const question = this.shares?.question;
    if (!question) return null;
    return [...keys].reduce((sum, key) => {
      const [text, token] = key.split(":").map(Number);
      return sum + (question[text]?.tokens[token]?.share ?? 0);
    }, 0);
  }

  /** Says how much of the score goes through the chosen tokens; nothing, given null. */
  setThrough(share) {
    this.flow.hidden = share === null;
    fill(this.flow, share === null ? null : `${signed(share)} nats through the chosen words`);
  }

  showHead() {
    const { hit, sign, view } = this;
    const { normalise, certificate } = view.answer;
    const value = rankedValue(hit, normalise);
    const score = [el("strong", {}, signed(value)), ` ${UNITS[normalise]}`];
    if (normalise !== "none") score.push(` · ${signed(hit.score)} nats`);
    const stored = certificate.tier === "stored";
    const anew = stored && this.shares ? `exact ${signed(this.shares.score)} nats` : null;
    fill(
      this.head,
      el("span", { class: "rank", "aria-hidden": "true" }, String(hit.rank)),
      el(
        "div",
        { class: "measure" },
        el("p", { class: "score" }, score, tier(stored), anew, this.bandOf(hit, sign, certificate)),
        el("div", {
          class: "bar",
          style: { "--part": (view.top ? Math.abs(value) / view.top : 0).toFixed(4) },
        }),
      ),
      el("dl", { class: "metadata" }, this.metadata()),
    );
  }

  bandOf(hit, sign, { documents }) {
    if (hit.percentile === null) return null;
    const found = band(hit.percentile, sign, documents);
    const dots = "●".repeat(found.level + 1) + "○".repeat(2 - found.level);
    return el(
      "span",
      { class: `band ${found.name}`, title: found.meaning },
      el("span", { class: "dots", "aria-hidden": "true" }, dots),
      ` ${found.name} `,
      el("span", { class: "faint" }, `percentile ${percent(hit.percentile)}`),
      el("span", { class: "unseen" }, `. ${found.meaning}`),
    );
  }

  metadata() {
    const { hit, view } = this;
    const entry = (name, value, ...actions) =>
      el("div", {}, el("dt", {}, name), el("dd", {}, el("bdi", {}, value), ...actions));
    const own = Object.entries(hit.metadata).map(([name, value]) => {
      const only = el(
        "button",
        {
          type: "button",
          class: "value",
          title: `Search only documents with this ${line(name)}`,
          on: { click: () => view.on.filter(name, value) },
        },
        el("bdi", {}, line(valueInWords(value))),
      );
      return el("div", {}, el("dt", {}, name), el("dd", {}, only));
    });
    return [...own, entry("document", line(hit.doc_id))];
  }

  showText() {
    const { hit, characters, view, shares, similar } = this;
    if (hit.text === "") return;
    const bySharing = view.paint === "shared";
    const tokens = shares?.tokens ?? null;
    const marks = bySharing ? sharedMarks(similar, view.leastRun) : influenceMarks(characters, tokens ?? []);
    const shared = bySharing && marks.length ? marks[0] : null;
    const whole = [0, characters.length];
    const shown = this.open ? whole : windowOf(characters, tokens, shared);
    fill(this.text, shown[0] > 0 ? "… " : null);
    paintText(this.text, characters, shown, marks);
    append(this.text, shown[1] < characters.length ? " …" : null);
    const cut = shown[1] - shown[0] < characters.length;
    this.more.hidden = !cut && !this.open;
    this.more.setAttribute("aria-expanded", String(this.open));
    const all = counted(characters.length, "character");
    fill(this.more, this.open ? "Show less" : `Show all ${all}`);
  }

  showFacts() {
    const { hit, view, shares, similar } = this;
    const chips = similar ? this.similarity() : [];
    const parts = partsInWords(this.parts);
    const button = (words, label, click) =>
      el("button", { type: "button", class: "quiet", "aria-label": label, on: { click } }, words);
    const actions = el(
      "div",
      { class: "hit-actions" },
      hit.text === "" ? null : button("Open", `Open ${line(hit.doc_id)}`, () => view.on.open(this)),
      shares?.question
        ? button("In the question", `Show what of the question ${line(hit.doc_id)} carries`, () =>
            view.on.pin(this),
          )
        : null,
    );
    fill(
      this.facts,
      shares ? layerMap(this.layers, shares.layers) : null,
      el(
        "div",
        { class: "beside" },
        parts && el("p", { class: "note" }, parts),
        el("ul", { class: "chips", hidden: chips.length === 0 }, chips),
        actions,
      ),
    );
  }

  similarity() {
    const { similar, searched, others, view } = this;
    const chips = [
      el(
        "li",
        { title: `BM25 score ${similar.bm25.toFixed(2)}` },
        similar.bm25 > 0
          ? `BM25 rank ${counted(similar.bm25_rank)} of ${counted(searched)}`
          : "no word in common by BM25",
      ),
    ];
    if (similar.shared_words >= view.leastRun) {
      const { shared_start: start, shared_end: end } = similar;
      const run = line(this.characters.slice(start, end).join(""));
      const short = run.length > 60 ? `${run.slice(0, 59)}…` : run;
      const words = counted(similar.shared_words);
      chips.push(el("li", {}, `${words} shared words: “`, el("bdi", {}, short), "”"));
    }
    if (similar.flag) chips.push(el("li", { class: "flag" }, similar.flag));
    if (similar.cluster !== null) {
      const links = others.map((card) =>
        el(
          "button",
          { type: "button", class: "value", on: { click: () => view.on.goTo(card) } },
          `${card.sign > 0 ? "proponent" : "opponent"} ${card.hit.rank}`,
        ),
      );
      const between = links.flatMap((link, at) => (at ? [", ", link] : [link]));
      chips.push(el("li", { class: "cluster" }, "near-duplicate of ", between));
    }
    return chips;
  }
}

function tier(stored) {
  return stored
    ? el("span", { class: "tier stored", title: "Inner product of stored vectors" }, "stored")
    : el(
        "span",
        { class: "tier exact", title: "Of uncompressed gradients, computed anew" },
        "exact",
      );
}
