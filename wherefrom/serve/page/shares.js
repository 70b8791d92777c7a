// What a score is made of: tokens that can be drawn, and what lies on none of them.

import { signed } from "./words.js";

/** Tokens that do not overlap: those that share a character become one, with the sum of shares. */
export function apart(tokens) {
  const merged = [];
  const ordered = [...tokens].sort((a, b) => a.start - b.start || a.end - b.end);
  for (const { start, end, share } of ordered) {
    if (start >= end) continue;
    const last = merged.at(-1);
    if (!last || start >= last.end) merged.push({ start, end, share });
    else {
      last.end = Math.max(last.end, end);
      last.share = last.share === null ? share : last.share + (share ?? 0);
    }
  }
  return merged;
}

/**
 * Nats on the text, on special tokens (which stand for no characters), and of layers that see no
 * tokens: together the score. Null where no tokens have shares.
 */
export function partsOf(tokens, elsewhere) {
  if (!tokens) return null;
  const parts = { text: 0, special: 0, elsewhere };
  for (const { start, end, share } of tokens) {
    parts[start < end ? "text" : "special"] += share ?? 0;
  }
  return parts;
}

/** The same for all texts asked about. */
export function questionPartsOf({ question, question_elsewhere: elsewhere }) {
  return partsOf(question?.flatMap((text) => text.tokens), elsewhere);
}

/** The parts of several scores, summed; null where those of one are not known. */
export function summed(all) {
  if (all.length === 0 || all.includes(null)) return null;
  const sum = (name) => all.reduce((total, parts) => total + parts[name], 0);
  return { text: sum("text"), special: sum("special"), elsewhere: sum("elsewhere") };
}

/** Where a score lies, as reports say it; null where all of it lies on the text. */
export function partsInWords(parts) {
  if (!parts || !(parts.special || parts.elsewhere)) return null;
  const told = [`${signed(parts.text)} nats lie on the text itself`];
  if (parts.special) {
    told.push(`${signed(parts.special)} nats lie on special tokens, which stand for no text`);
  }
  if (parts.elsewhere) {
    told.push(`${signed(parts.elsewhere)} nats come from layers that see no tokens`);
  }
  return `${told.join("; ")}.`;
}
