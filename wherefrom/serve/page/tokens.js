// The question, token by token: what hits carry of it, and which hits draw on which token.

import { append, appendText, el, fill, line } from "./dom.js";
import { inkStart, shade } from "./paint.js";

const ARE = {
  predictions: "A token's share is that of its prediction.",
  positions: "A token's share is of what layers did at its position.",
};

/** The question above the answer. */
export class QuestionTokens {
  /** `onChoice` is called when other tokens are chosen. */
  constructor(container, note, onChoice) {
    this.container = container;
    this.note = note;
    this.onChoice = onChoice;
    this.chosen = new Set();
    container.addEventListener("click", (event) => this.choose(event.target));
    container.addEventListener("keydown", (event) => this.onKey(event));
  }

  /** Shows a question of which no token is known yet. */
  begin({ prompt, completion, contrast }) {
    this.tokens = null;
    this.chosen.clear();
    const characters = (text) => Array.from(text);
    const texts = contrast === null ? [completion] : [completion, contrast];
    fill(this.container);
    texts.forEach((text, at) => {
      const row = el("span", { class: "asked" }, at > 0 ? el("i", {}, "instead of ") : null);
      appendText(row, characters(prompt), 0, characters(prompt).length);
      const said = el("mark", { class: at > 0 ? "contrast" : "said" });
      appendText(said, characters(text), 0, characters(text).length);
      this.container.append(append(row, said));
    });
    fill(this.note);
  }

  /** Takes up the tokens of the question, once they are known. */
  setUp(question, tokensAre) {
    if (this.tokens || !question) return;
    this.are = ARE[tokensAre] ?? "";
    this.tokens = new Map();
    fill(this.container);
    question.forEach(({ text, tokens, weight }, at) => {
      const characters = Array.from(text);
      const row = el("span", { class: "asked" }, weight < 0 ? el("i", {}, "instead of ") : null);
      let from = 0;
      tokens.forEach(({ start, end, share }, number) => {
        const ink = inkStart(characters, { start, end });
        appendText(row, characters, from, ink);
        from = end;
        const data = { key: `${at}:${number}` };
        const token = el("span", { class: "token", role: "button", data });
        token.ariaPressed = "false";
        if (share === null) token.ariaDisabled = "true";
        appendText(token, characters, ink, end);
        token.tabIndex = this.tokens.size === 0 ? 0 : -1;
        this.tokens.set(token.dataset.key, token);
        row.append(token);
      });
      appendText(row, characters, from, characters.length);
      this.container.append(row);
    });
  }

  /**
   * Colours the tokens by the summed shares of hits.
   *
   * `questions` are the shares of each; `of` says of which hits in words; `parts`, if not null, what
   * lies on none of the tokens; `unpin`, if given, shows all of them again.
   */
  show(questions, of, parts, unpin) {
    if (!this.tokens) return;
    const share = new Map();
    for (const key of this.tokens.keys()) {
      const [text, token] = key.split(":").map(Number);
      const all = questions.map((question) => question[text]?.tokens[token]?.share ?? null);
      const known = all.filter((one) => one !== null);
      share.set(key, known.length ? known.reduce((a, b) => a + b, 0) : null);
    }
    const most = Math.max(0, ...[...share.values()].map((one) => Math.abs(one ?? 0)));
    for (const [key, token] of this.tokens) shade(token, share.get(key), most);
    const rest = parts && `${parts} `;
    const clear = el("button", { type: "button", class: "quiet" });
    clear.append(this.chosen.size > 0 ? "Clear" : "Show all");
    if (this.chosen.size > 0) {
      clear.addEventListener("click", () => this.clear());
      const words = [...this.chosen].map((key) => line(this.tokens.get(key).textContent));
      const through = words.map((word) => `“${word}”`).join(", ");
      fill(this.note, `Documents by how much of their score goes through ${through}. `, clear);
    } else if (unpin) {
      clear.addEventListener("click", unpin);
      fill(this.note, `Coloured by what ${of} carries of the question. `, rest, clear);
    } else {
      const how = `Coloured by what ${of} carry of the question. ${this.are}`;
      fill(this.note, `${how} `, rest, "Choose a token to see which documents draw on it.");
    }
  }

  /** Brings the question into view. */
  reveal() {
    this.container.scrollIntoView({ block: "nearest" });
  }

  clear() {
    this.chosen.clear();
    for (const token of this.tokens.values()) token.ariaPressed = "false";
    this.onChoice();
    this.container.querySelector("[tabindex='0']")?.focus();
  }

  choose(target) {
    const token = target.closest("[data-key]");
    if (!token || token.ariaDisabled === "true") return;
    const { key } = token.dataset;
    if (!this.chosen.delete(key)) this.chosen.add(key);
    token.ariaPressed = String(this.chosen.has(key));
    this.rove(token);
    this.onChoice();
  }

  onKey(event) {
    const token = event.target.closest("[data-key]");
    if (!token) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.choose(token);
      return;
    }
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...this.tokens.values()];
    const next = all[all.indexOf(token) + step];
    if (next) {
      this.rove(next);
      next.focus();
    }
  }

  /** One token at a time is a stop of the Tab key; arrow keys go on from there. */
  rove(token) {
    for (const other of this.tokens.values()) other.tabIndex = other === token ? 0 : -1;
  }
}
