// Numbers in words, as the terminal and the report write them.

/** With sign and three significant digits. */
export function signed(value) {
  const size = Math.abs(value);
  const digits =
    size !== 0 && (size < 1e-4 || size >= 999.5)
      ? size.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2")
      : size.toPrecision(3);
  return (value < 0 ? "-" : "+") + digits.replace(/\.$/, "");
}

/** A whole number with its thousands set apart. */
export function counted(count, noun) {
  const number = count.toLocaleString("en");
  return noun === undefined ? number : `${number} ${noun}${count === 1 ? "" : "s"}`;
}

/** A share in per cent, finer near the ends; it never rounds to an end that it does not reach. */
export function percent(value) {
  const fine = value < 1 || value > 99;
  const held = value > 0 && value < 100 ? Math.min(Math.max(value, 0.01), 99.99) : value;
  return held.toFixed(fine ? 2 : 1).replace(/^(0|100)\.0+$/, "$1");
}

/** Words as a sentence: with a capital, and an end. */
export function sentence(words) {
  const end = /[.?!…]$/.test(words) ? "" : ".";
  return words.charAt(0).toUpperCase() + words.slice(1) + end;
}

/** A metadata value; a missing one is a dash. */
export function valueInWords(value) {
  return value === null || value === undefined ? "–" : String(value);
}

/**
 * How near a hit is against the background: a level from 0 (low) to 2 (high), and what it means.
 *
 * Among thousands of documents the best are past 99 % of random pairs by chance alone; so "high"
 * asks how many of them chance would bring as near.
 */
export function band(percentile, sign, documents) {
  const beyond = sign > 0 ? percentile : 100 - percentile;
  const byChance = (documents * (100 - beyond)) / 100;
  const pairs = `Past ${percent(beyond)} % of random document/question pairs.`;
  const expected = byChance < 1 ? "fewer than one" : `about ${counted(Math.round(byChance))}`;
  const chance = `By chance ${expected} of ${counted(documents)} documents would be as near.`;
  const level = byChance < 1 ? 2 : beyond >= 99 ? 1 : 0;
  return { level, name: ["low", "medium", "high"][level], beyond, meaning: `${pairs} ${chance}` };
}

/** What the three levels mean. */
export const BANDS =
  "Against background: high = by chance, fewer than one of the documents searched would be as " +
  "near to the question; medium = past 99 % of random document/question pairs; low = all else.";

/** The (operator, value) pairs of a column's condition. */
export function pairsOf(condition) {
  if (!Array.isArray(condition)) return [["==", condition]];
  return typeof condition[0] === "string" ? [condition] : condition;
}
