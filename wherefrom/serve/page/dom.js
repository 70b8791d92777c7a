// Elements, and text that may come from anywhere.
//
// Everything shown goes through `el` and `appendText`: as text nodes, never as markup, and with
// control and invisible formatting characters spelled out, so that none reorders or hides what is
// read.

const ODD = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;
const KEPT = "\n\t\u200c\u200d"; // joiners shape letters in many scripts and emoji

/** Whether a character is spelled out instead of shown. */
function isOdd(character) {
  return ODD.test(character) && !KEPT.includes(character);
}

function codeOf(character) {
  return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** Text with odd characters spelled out, as one string. */
export function plain(text) {
  const string = String(text);
  if (!ODD.test(string)) return string;
  return Array.from(string, (c) => (isOdd(c) ? `⟨${codeOf(c)}⟩` : c)).join("");
}

/** Plain text on one line. */
export function line(text) {
  return plain(String(text).replace(/\s+/gu, " ").trim());
}

/**
 * An element.
 *
 * `options`: `class`, `on` (listeners by event), `style` (custom properties), `data`; anything else
 * is an attribute, left out if null or false. Children are nodes or text; null ones are left out.
 */
export function el(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) {
        element.addEventListener(event, listener);
      }
    } else if (name === "style") {
      for (const [key, set] of Object.entries(value)) element.style.setProperty(key, set);
    } else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : plain(value));
  }
  append(element, ...children);
  return element;
}

/** Appends nodes and plain text. */
export function append(element, ...children) {
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : plain(child));
  }
  return element;
}

/** Replaces all that an element holds. */
export function fill(element, ...children) {
  element.replaceChildren();
  return append(element, ...children);
}

/** An element of a picture. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, plain(value));
  return append(element, ...children);
}

/**
 * Appends characters `start` to `end` of a text in pieces that remember where they are from.
 *
 * `characters` are code points, as the service counts them. `mark`, if given, makes the element of
 * each piece.
 */
export function appendText(parent, characters, start, end, mark = () => el("span")) {
  let from = start;
  const flush = (to) => {
    if (to <= from) return;
    const piece = mark();
    piece.dataset.start = from;
    piece.append(characters.slice(from, to).join(""));
    parent.append(piece);
  };
  for (let at = start; at < end; at += 1) {
    if (!isOdd(characters[at])) continue;
    flush(at);
    const piece = mark();
    piece.classList.add("odd");
    piece.dataset.start = at;
    piece.dataset.odd = "";
    piece.append(codeOf(characters[at]));
    parent.append(piece);
    from = at + 1;
  }
  flush(end);
}

/** The place in the text of one end of a selection; null outside of such pieces. */
export function placeOf(node, offset) {
  if (node.nodeType !== Node.TEXT_NODE) {
    const next = node.childNodes[offset];
    if (next) return placeOf(firstText(next) ?? next, 0);
    const last = node.childNodes[offset - 1] && lastText(node.childNodes[offset - 1]);
    return last ? placeOf(last, last.data.length) : null;
  }
  const piece = node.parentElement?.closest("[data-start]");
  if (!piece) return null;
  const start = Number(piece.dataset.start);
  if ("odd" in piece.dataset) return start + (offset > 0 ? 1 : 0);
  return start + Array.from(node.data.slice(0, offset)).length;
}

function firstText(node) {
  return document.createTreeWalker(node, NodeFilter.SHOW_TEXT).nextNode() ?? asText(node);
}

function lastText(node) {
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  let last = asText(node);
  while (walker.nextNode()) last = walker.currentNode;
  return last;
}

function asText(node) {
  return node.nodeType === Node.TEXT_NODE ? node : null;
}
