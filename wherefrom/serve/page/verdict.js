// How far an answer can be trusted, in words that come with it.

import { append, el, line } from "./dom.js";
import { BANDS, sentence } from "./words.js";

const FOUND_BY_CHANCE =
  "A question picked at random finds documents as near too often for such a list to mean much.";

/** Background, certificate and what was measured; `coming`: what is said of scores on the way. */
export function verdicts(answer, words, coming) {
  const { certificate } = answer;
  return [
    backgroundBox(certificate.background, words.background),
    certificateBox(certificate, words, coming),
    el(
      "p",
      { class: "measured" },
      `Measured: ${words.measured}, ${words.worth}`,
      words.damping ? `. Damping: ${words.damping}` : null,
      words.filter ? `. Only documents with ${words.filter}` : null,
    ),
  ];
}

function backgroundBox(background, words) {
  if (!background || !words) return null;
  const lists = { Proponents: background.proponents, Opponents: background.opponents };
  const known = Object.entries(lists).filter(([, stands]) => stands !== null);
  const names = (stands) => known.filter(([, one]) => one === stands).map(([name]) => name);
  const [out, lost] = [names(true), names(false)];
  const title =
    lost.length === 0
      ? `${out.join(" and ")} stand out from background`
      : out.length === 0
        ? "Not distinguishable from background"
        : `${lost.join(" and ")} not distinguishable from background`;
  const sign = el("span", { class: "sign", "aria-hidden": "true" }, lost.length ? "!" : "✓");
  return el(
    "section",
    { class: lost.length ? "verdict warning" : "verdict good", "aria-label": "Against background" },
    el("h2", {}, sign, title),
    el("p", {}, words),
    lost.length ? el("p", {}, FOUND_BY_CHANCE) : null,
  );
}

function certificateBox({ tier, certified }, words, coming) {
  const badge = el("span", { class: `tier ${tier}` }, tier);
  const title = certified ? "Certified" : "Not certified";
  return el(
    "section",
    { class: certified ? "verdict" : "verdict open", "aria-label": "Certificate" },
    el("h2", {}, title, " ", badge),
    el("p", {}, sentence(words.certificate.replace(/^(Not certified|Certified): /, ""))),
    words.slope ? el("p", {}, words.slope) : null,
    coming ? el("p", { class: "busy" }, coming) : null,
  );
}

/** What the numbers mean, what they do not, and the answer to take along. */
export function foot(answer, words, copy) {
  const button = (label, what) =>
    el("button", { type: "button", on: { click: (event) => copy(what, event.target) } }, label);
  const { index } = answer;
  const facts = [
    ["index", `${index.documents} documents, ${index.curvature}, ${index.encoder}`],
    ["manifest SHA-256", index.manifest_sha256],
    ["weights SHA-256", index.weights_sha256],
  ];
  return [
    el("div", { class: "buttons" }, [
      words.replay === null ? null : button("Copy as command", "command"),
      button("Copy as JSON", "json"),
    ]),
    el("h2", {}, "How to read this"),
    el("p", {}, `${answer.contract}.`),
    el("p", {}, `Percentile: ${words.percentile}. ${BANDS}`),
    el("p", {}, words.no_proof),
    append(
      el("dl", { class: "metadata digests" }),
      facts.map(([name, value]) =>
        el("div", {}, el("dt", {}, name), el("dd", {}, line(value ?? "–"))),
      ),
    ),
  ];
}
