// An answer as it streams in: verdict, hits of both signs, and what is beside them.

import { append, el, fill } from "./dom.js";
import { HitCard, rankedValue } from "./hit.js";
import { mostSimilar, Sums } from "./lists.js";
import { partsInWords, summed } from "./shares.js";
import { QuestionTokens } from "./tokens.js";
import { foot, verdicts } from "./verdict.js";
import { counted, sentence } from "./words.js";

const DIMMED = 0.15; // of the strongest hit: what goes less through the chosen tokens steps back
const ALIKE =
  "Documents that share most words with the question, by BM25, and the influence they have. " +
  "Likeness proves no influence, and influence no likeness.";
const COMING = {
  recompute: "Exact scores are being computed …",
  auto: "Exact scores follow, if they are quick …",
};
const SIGNS = { proponents: 1, opponents: -1 };

/** The part of the page that shows an answer. */
export class AnswerView {
  /** `on`: `open`, `filter`, `sum`, `copy`, `say` (to who cannot see), `seen` (metadata). */
  constructor(parts, on) {
    this.parts = parts;
    this.on = on;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.tokens = new QuestionTokens(parts.tokens, parts.note, () => this.arrange());
    parts.paint.addEventListener("change", () => {
      this.view.paint = parts.paint.value;
      for (const card of this.cards.values()) card.showText();
    });
  }

  /** Begins anew for a question. */
  begin(question, columns) {
    this.question = question;
    this.answer = null;
    this.words = null;
    this.explanation = { layers: null, tokens_are: null, hits: new Map() };
    this.similarity = null;
    this.groups = new Map();
    this.cards = new Map();
    this.ranked = false; // by the best scores that there will be
    this.view = {
      paint: this.parts.paint.value,
      on: { ...this.on, pin: (card) => this.pin(card), goTo: (card) => this.goTo(card) },
    };
    this.sums = new Sums(columns, async (column) => {
      const found = this.groups.get(column) ?? (await this.on.sum(column));
      if (found !== null) this.groups.set(column, found);
      return found;
    });
    const list = () => el("ol", { class: "hits" });
    this.lists = { proponents: list(), opponents: list() };
    this.tab = "proponents";
    this.tokens.begin(question);
    this.parts.found.hidden = true;
  }

  /** Takes in one event of the stream. */
  take({ kind, data }) {
    const takes = {
      stored: () => this.setAnswer(data),
      answer: () => this.setAnswer(data),
      words: () => this.setWords(data),
      shares: () => this.setShares(data),
      similarity: () => this.setSimilarity(data),
      groups: () => this.setGroups(data),
      done: () => this.finish(),
    };
    takes[kind]?.();
  }

  /** The whole answer, as the library gives it. */
  toJSON() {
    const { layers, tokens_are, hits } = this.explanation;
    const explained = layers && { layers, tokens_are, hits: [...hits.values()] };
    const groups = [...this.groups.values()];
    return { ...this.answer, explanation: explained, similarity: this.similarity, groups };
  }

  setAnswer(answer) {
    const before = this.answer && this.places();
    this.answer = answer;
    this.view.answer = answer;
    const hits = [...answer.proponents, ...answer.opponents];
    const values = hits.map((hit) => Math.abs(rankedValue(hit, answer.normalise)));
    this.view.top = Math.max(0, ...values);
    for (const [name, sign] of Object.entries(SIGNS)) {
      for (const hit of answer[name]) {
        const card = this.cards.get(hit.doc_id) ?? new HitCard(this.view);
        this.cards.set(hit.doc_id, card);
        card.setHit(hit, sign);
        this.on.seen(hit.metadata);
      }
    }
    if (!answer.proponents.length && answer.opponents.length) this.tab = "opponents";
    this.parts.found.hidden = false;
    this.arrange(before);
    this.showTabs();
    this.showPanels();
    this.showVerdicts();
    const tier = answer.certificate.tier;
    this.on.say(
      `${counted(answer.proponents.length, "proponent")} and ` +
        `${counted(answer.opponents.length, "opponent")} by ${tier} scores`,
    );
  }

  setWords(words) {
    this.words = words;
    this.view.leastRun = words.least_run;
    this.showVerdicts();
    this.showTabs();
    this.showPanels();
  }

  setShares({ layers, tokens_are, hit: shares }) {
    const { hits } = this.explanation;
    Object.assign(this.explanation, { layers, tokens_are });
    hits.set(shares.doc_id, shares);
    this.settle();
    const card = this.cards.get(shares.doc_id);
    card?.setShares(shares, layers);
    this.tokens.setUp(card?.shares.question, tokens_are);
    this.showTokens();
    if (this.tokens.chosen.size > 0) this.arrange();
  }

  setSimilarity(similarity) {
    this.settle();
    this.similarity = similarity;
    const clusters = new Map();
    for (const { doc_id: docId, cluster } of similarity.hits) {
      const card = this.cards.get(docId);
      if (card && cluster !== null) clusters.set(cluster, [...(clusters.get(cluster) ?? []), card]);
    }
    for (const similar of similarity.hits) {
      const card = this.cards.get(similar.doc_id);
      const others = (clusters.get(similar.cluster) ?? []).filter((other) => other !== card);
      card?.setSimilarity(similar, similarity.documents, others);
    }
    this.showTabs();
    this.showPanels();
  }

  setGroups(grouping) {
    this.groups.set(grouping.column, grouping);
    this.sums.show(grouping);
  }

  finish() {
    this.settle();
    this.on.say("The answer is complete");
  }

  /** No better scores will come. */
  settle() {
    if (this.ranked || !this.answer) return;
    this.ranked = true;
    this.showVerdicts();
  }

  showVerdicts() {
    const { answer, words, question, ranked } = this;
    if (!words) return;
    const coming = !ranked && answer.certificate.tier === "stored" ? COMING[question.rerank] : null;
    fill(this.parts.verdicts, verdicts(answer, words, coming));
    fill(this.parts.foot, foot(answer, words, this.on.copy));
  }

  /** Hits of the sign whose tab is open; of the first that has any beside other tabs. */
  shownCards(name = this.tab) {
    const sign = name in SIGNS ? name : "proponents";
    return this.answer[sign].map((hit) => this.cards.get(hit.doc_id));
  }

  /** Puts the hits in order: by rank, or by what goes through the chosen tokens of the question. */
  arrange(before = this.places()) {
    const { chosen } = this.tokens;
    for (const [name, sign] of Object.entries(SIGNS)) {
      const cards = this.shownCards(name);
      const through = new Map(cards.map((card) => [card, card.through(chosen)]));
      const known = chosen.size > 0;
      if (known) cards.sort((a, b) => sign * ((through.get(b) ?? 0) - (through.get(a) ?? 0)));
      const most = Math.max(0, ...cards.map((card) => Math.abs(through.get(card) ?? 0)));
      for (const card of cards) {
        const share = through.get(card);
        const dim = known && share !== null && Math.abs(share) < DIMMED * most;
        card.element.classList.toggle("dimmed", dim);
        card.setThrough(known ? share : null);
      }
      this.lists[name].replaceChildren(...cards.map((card) => card.element));
    }
    this.showTokens();
    this.animate(before);
  }

  places() {
    const shown = [...this.cards.values()].filter((card) => card.element.isConnected);
    return new Map(shown.map((card) => [card, card.element.getBoundingClientRect().top]));
  }

  /** Lets cards glide from where they were. */
  animate(before) {
    if (!before || this.still.matches) return;
    for (const [card, top] of before) {
      const { element } = card;
      if (!element.isConnected || element.offsetParent === null) continue;
      const moved = top - element.getBoundingClientRect().top;
      if (Math.abs(moved) < 1) continue;
      const frames = [{ transform: `translateY(${moved}px)` }, { transform: "none" }];
      element.animate(frames, { duration: 450, easing: "cubic-bezier(.2, .7, .2, 1)" });
    }
  }

  showTokens() {
    const { pinned } = this;
    const cards = pinned ? [pinned] : this.shownCards();
    const list = this.tab === "opponents" ? "opponents" : "proponents";
    const of = pinned && `${pinned.sign > 0 ? "proponent" : "opponent"} ${pinned.hit.rank}`;
    const explained = cards.filter((card) => card.shares?.question);
    this.tokens.show(
      explained.map((card) => card.shares.question),
      pinned ? of : `all ${list} shown`,
      partsInWords(summed(explained.map((card) => card.questionParts))),
      pinned && (() => this.pin(null)),
    );
  }

  get pinned() {
    return this.pinnedCard && this.cards.get(this.pinnedCard.hit.doc_id) === this.pinnedCard
      ? this.pinnedCard
      : null;
  }

  /** Shows on the question what one hit carries of it; of all hits again, given null. */
  pin(card) {
    this.pinnedCard?.element.classList.remove("pinned");
    this.pinnedCard = card === this.pinnedCard ? null : card;
    this.pinnedCard?.element.classList.add("pinned");
    this.showTokens();
    if (this.pinnedCard) this.tokens.reveal();
  }

  goTo(card) {
    this.open(card.sign > 0 ? "proponents" : "opponents");
    card.element.tabIndex = -1;
    card.element.focus();
    card.element.scrollIntoView({ block: "center" });
  }

  open(tab) {
    this.tab = tab;
    this.showTabs();
    this.showPanels();
    this.showTokens();
  }

  /** Tabs there are by now, each with its name. */
  names() {
    const { answer, similarity } = this;
    const background = answer.certificate.background;
    const named = {};
    for (const [name, shown] of [["proponents", "Proponents"], ["opponents", "Opponents"]]) {
      const count = answer[name].length;
      if (count === 0 && answer.sign !== "both" && answer.sign !== name) continue;
      const noise = background?.[name] === false;
      const words = noise ? el("span", { class: "noise" }, "like background") : null;
      named[name] = [`${shown} `, el("span", { class: "count" }, String(count)), words];
    }
    if (similarity?.most_similar.length) named.similar = ["Alike in words"];
    named.sums = ["Sums"];
    return named;
  }

  showTabs() {
    const names = this.names();
    const focused = this.parts.tabs.contains(document.activeElement);
    const tabs = Object.entries(names).map(([name, words]) =>
      el(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-selected": String(name === this.tab),
          "aria-controls": "panels",
          tabindex: name === this.tab ? "0" : "-1",
          on: { click: () => this.open(name), keydown: (event) => this.onKey(event, names) },
        },
        words,
      ),
    );
    fill(this.parts.tabs, tabs);
    if (focused) this.parts.tabs.querySelector("[aria-selected=true]")?.focus();
  }

  onKey(event, names) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = Object.keys(names);
    this.open(all[(all.indexOf(this.tab) + step + all.length) % all.length]);
    this.parts.tabs.querySelector("[aria-selected=true]").focus();
  }

  showPanels() {
    const noisy = this.answer.certificate.background?.[this.tab] === false;
    const panel = el("div", {
      role: "tabpanel",
      id: "panel",
      class: noisy ? `${this.tab} noisy` : this.tab,
      "aria-labelledby": `tab-${this.tab}`,
    });
    if (this.tab === "similar") {
      append(panel, mostSimilar(this.similarity, this.view.leastRun, this.on.read));
    } else if (this.tab === "sums") append(panel, this.sums.element);
    else append(panel, this.hits(this.tab));
    fill(this.parts.panels, panel);
    this.parts.painted.hidden = !(this.tab in SIGNS);
    fill(this.parts.means, this.means());
  }

  hits(name) {
    const { answer, words, lists } = this;
    const none = answer[name].length === 0 && words ? words.empty : null;
    return [none && el("p", {}, none), lists[name]];
  }

  /** What the documents of the open tab are. */
  means() {
    const { tab, words } = this;
    if (tab === "similar") return ALIKE;
    if (tab === "sums") return "Influence of all documents searched, not of the hits alone.";
    const does = words && (tab === "proponents" ? words.raised : words.lowered);
    return does && sentence(does);
  }
}
