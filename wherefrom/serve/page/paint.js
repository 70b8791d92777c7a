// What a score is made of, drawn: tokens in colours, layers as a heat map.

import { append, appendText, el, svg } from "./dom.js";
import { signed } from "./words.js";

const SHOWN = 640; // characters of a hit's text before it is opened
const FAINTEST = 0.04; // of the strongest share: below, a token stays plain
const UNDERLINED = 0.3; // from here on the sign is told by more than colour

/** The largest absolute share; 0 where there is none. */
export function strongest(tokens) {
  return tokens.reduce((most, token) => Math.max(most, Math.abs(token.share ?? 0)), 0);
}

/** Colours a token by its share; `most` is the strongest beside it. */
export function shade(element, share, most) {
  const part = most > 0 ? (share ?? 0) / most : 0;
  const size = Math.abs(part);
  const plain = size < FAINTEST;
  element.classList.toggle("context", share === null);
  element.classList.toggle("raises", !plain && part > 0);
  element.classList.toggle("lowers", !plain && part < 0);
  element.classList.toggle("strong", size >= UNDERLINED);
  if (plain) element.style.removeProperty("--part");
  else element.style.setProperty("--part", size.toFixed(3));
  element.title = share === null ? "context only" : `${signed(share)} nats`;
  return element;
}

/**
 * The window of a text that is worth showing first, `[start, end)` in characters.
 *
 * Around the strongest tokens, or the run of words shared with the question; from the start where
 * neither is known.
 */
export function windowOf(characters, tokens, shared) {
  if (characters.length <= SHOWN) return [0, characters.length];
  let start = 0;
  if (shared) start = Math.round((shared.start + shared.end - SHOWN) / 2);
  else if (tokens) start = heaviest(tokens);
  start = Math.max(0, Math.min(start, characters.length - SHOWN));
  while (start > 0 && !/\s/.test(characters[start - 1])) start -= 1;
  let end = Math.min(characters.length, start + SHOWN);
  while (end < characters.length && !/\s/.test(characters[end])) end += 1;
  return [start, end];
}

/** Start of the window with most absolute share in it; tokens are in the order of the text. */
function heaviest(tokens) {
  let [best, most, sum, tail] = [0, -1, 0, 0];
  for (const token of tokens) {
    sum += Math.abs(token.share ?? 0);
    while (token.end - tokens[tail].start > SHOWN) {
      sum -= Math.abs(tokens[tail].share ?? 0);
      tail += 1;
    }
    if (sum > most) [best, most] = [tokens[tail].start, sum];
  }
  return best;
}

/**
 * Paints characters `start` to `end` of a text.
 *
 * `marks`: `{start, end, make}` in the order of the text; `make` makes the element of a piece.
 */
export function paintText(parent, characters, [start, end], marks) {
  let at = start;
  for (const mark of marks) {
    const from = Math.max(mark.start, at);
    const to = Math.min(mark.end, end);
    if (from >= to) continue;
    appendText(parent, characters, at, from);
    appendText(parent, characters, from, to, mark.make);
    at = to;
  }
  appendText(parent, characters, at, end);
}

/** Where a token's colour starts: past the space that many tokens start with. */
export function inkStart(characters, { start, end }) {
  return end - start > 1 && characters[start] === " " ? start + 1 : start;
}

/** Marks of a text's tokens by their shares. */
export function influenceMarks(characters, tokens) {
  const most = strongest(tokens);
  return tokens.map(({ start, end, share }) => ({
    start: inkStart(characters, { start, end }),
    end,
    make: () => shade(el("span", { class: "token" }), share, most),
  }));
}

/** The mark of the longest run of words shared with the question, if it has `least` words. */
export function sharedMarks(similar, least) {
  if (!similar || similar.shared_words < least) return [];
  const make = () => el("mark", { class: "shared" });
  return [{ start: similar.shared_start, end: similar.shared_end, make }];
}

/** A heat map of layers, modules down and depth across, with its strongest cell in words. */
export function layerMap(layers, shares) {
  const modules = [...new Set(layers.map((layer) => layer.module))];
  const depths = [...new Set(layers.map((layer) => layer.depth))];
  depths.sort((a, b) => (a ?? -1) - (b ?? -1));
  const most = Math.max(...shares.map(Math.abs));
  const top = shares.findIndex((share) => Math.abs(share) === most);
  const [wide, high, gap] = [Math.max(4, Math.min(22, 320 / depths.length)), 13, 1.5];
  const picture = svg("svg", {
    class: "layers",
    role: "img",
    width: depths.length * wide,
    height: modules.length * high,
    "aria-label": `Layers; the strongest is ${layers[top].name} with ${signed(shares[top])} nats`,
  });
  layers.forEach((layer, index) => {
    const share = shares[index];
    const part = most > 0 ? Math.abs(share) / most : 0;
    const cell = svg("rect", {
      class: share < 0 ? "lowers" : "raises",
      x: depths.indexOf(layer.depth) * wide,
      y: modules.indexOf(layer.module) * high,
      width: wide - gap,
      height: high - gap,
      rx: 1.5,
      "fill-opacity": (0.08 + 0.92 * part).toFixed(3),
    });
    append(cell, svg("title", {}, `${layer.name}: ${signed(share)} nats`));
    picture.append(cell);
  });
  const { name, depth, module } = layers[top];
  const where = depth === null ? name : `block ${depth}, ${module}`;
  const names = modules.map((module) => el("span", {}, module));
  return el(
    "figure",
    { class: "layer-map" },
    el("div", { class: "layer-grid" }, el("div", { class: "modules" }, names), picture),
    el("figcaption", {}, `strongest: ${where} (${signed(shares[top])})`),
  );
}
