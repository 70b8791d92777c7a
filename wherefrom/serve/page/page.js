// The page: asks, shows what streams in, and remembers what was asked.

import { call, events, onLocked, ServiceError } from "./api.js";
import { AnswerView } from "./answer.js";
import { jsonText, showToCopy, toClipboard } from "./copy.js";
import { el, fill, line } from "./dom.js";
import { Filters } from "./filters.js";
import { fromFragment, readForm, requestOf, toFragment, writeForm } from "./question.js";
import { Reader } from "./reader.js";
import { counted, sentence } from "./words.js";

const HISTORY = "wherefrom-history";
const REMEMBERED = 30;
const CURVATURES = { ekfac: "EK-FAC", kfac: "K-FAC", datainf: "DataInf", lissa: "LiSSA" };
const CANDIDATES = 200; // documents that exact scores are computed of, by the service's default
const EXACT_SECONDS = 20; // what that may take where it is the page's own choice

const byId = (id) => document.getElementById(id);
const form = byId("ask");
const trouble = byId("trouble");

let info = null;
let filters = null;
let reader = null;
let asking = null; // what stops the question that is being answered
const told = new Map(); // events of answered questions by fragment, for the way back

const answer = new AnswerView(
  {
    found: byId("found"),
    verdicts: byId("verdicts"),
    tokens: byId("question-tokens"),
    note: byId("question-note"),
    tabs: byId("tabs"),
    panels: byId("panels"),
    paint: byId("paint"),
    painted: byId("painted"),
    means: byId("means"),
    foot: byId("foot"),
  },
  {
    say: (words) => fill(byId("status"), words),
    seen: (metadata) => filters.remember(metadata),
    open: (card) => attempt(() => reader.open(card.hit.doc_id, card.shares?.tokens ?? null)),
    read,
    filter: addFilter,
    copy,
    sum,
  },
);

/** Does what may fail, and says how it did in one line, with a way to try again. */
async function attempt(work) {
  trouble.hidden = true;
  try {
    return await work();
  } catch (error) {
    if (error.name === "AbortError") return null;
    if (error.status === undefined) throw error;
    const again = el("button", { type: "button", on: { click: () => attempt(work) } }, "Try again");
    const wait = error.retryAfter ? ` Try again in ${counted(error.retryAfter, "second")}.` : "";
    fill(trouble, el("p", {}, sentence(line(error.message)), wait), again);
    trouble.hidden = false;
    return null;
  }
}

/** Asks a question, or shows again what was answered in this tab. */
async function ask(question) {
  asking?.abort();
  const stop = new AbortController();
  asking = stop;
  const fragment = toFragment(question);
  byId("intro").hidden = true;
  answer.begin(question, Object.keys(info.metadata));
  const known = told.get(fragment);
  if (known) {
    for (const event of known) answer.take(event);
    return;
  }
  busy(true);
  const heard = [];
  try {
    for await (const event of events("v1/query/stream", requestOf(question), stop.signal)) {
      if (asking !== stop) return;
      if (event.kind === "error") throw new ServiceError(500, event.data.detail);
      heard.push(event);
      answer.take(event);
      if (event.kind === "done") told.set(fragment, heard);
    }
    if (!told.has(fragment)) throw new ServiceError(0, "the answer broke off before its end");
  } finally {
    if (asking === stop) {
      answer.settle();
      busy(false);
    }
  }
}

function busy(is) {
  byId("stop").hidden = !is;
  byId("answer").setAttribute("aria-busy", String(is));
  document.body.classList.toggle("asking", is);
}

/** Follows the fragment: the question that it holds is shown in the form, and asked. */
async function follow() {
  const question = fromFragment(location.hash);
  if (question === null) {
    asking?.abort();
    byId("found").hidden = true;
    byId("intro").hidden = false;
    document.title = "wherefrom";
    return;
  }
  writeForm(form, filters, question);
  byId("ask").querySelector(".contrast").open = question.contrast !== null;
  const asked = line(question.prompt.slice(-40) + question.completion);
  document.title = `${asked.slice(0, 60)} – wherefrom`;
  remember(question);
  await attempt(() => ask(question));
}

/** Goes to a question: the browser's back button leads back. */
function go(question) {
  const fragment = toFragment(question);
  if (location.hash === fragment) told.delete(fragment);
  else history.pushState(null, "", fragment);
  follow();
  if (matchMedia("(max-width: 60rem)").matches) byId("answer").scrollIntoView();
  byId("answer").focus({ preventScroll: true });
}

function remember(question) {
  const fragment = toFragment(question);
  const before = JSON.parse(sessionStorage.getItem(HISTORY) ?? "[]");
  const others = before.filter((other) => other !== fragment);
  const all = [fragment, ...others].slice(0, REMEMBERED);
  sessionStorage.setItem(HISTORY, JSON.stringify(all));
  const entries = all.map((one) => {
    const { prompt, completion } = fromFragment(one);
    const shown = [line(prompt.slice(-60)), " ", el("b", {}, line(completion))];
    return el("li", {}, el("a", { href: one, "aria-current": one === fragment && "page" }, shown));
  });
  fill(byId("history").querySelector("ol"), entries);
  byId("history").hidden = all.length < 2;
}

/** Adds a filter to the question and asks again. */
function addFilter(column, value) {
  const question = fromFragment(location.hash);
  const where = { ...question.where, [column]: [["==", value]] };
  go({ ...question, where });
}

function read(docId) {
  return attempt(() => reader.open(docId));
}

async function sum(column) {
  const { prompt, completion, contrast, where, damping } = answer.question;
  const request = { prompt, completion, where, by: column };
  if (contrast !== null) request.contrast = contrast;
  if (damping !== null) request.damping = damping;
  return attempt(() => call("v1/groups", request));
}

/** Hands the answer, or the command that asks for it, to the clipboard. */
async function copy(what, button) {
  const text = what === "json" ? jsonText(answer.toJSON()) : answer.words.replay;
  if (!(await toClipboard(text))) {
    showToCopy(text);
    return;
  }
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
  fill(byId("status"), "Copied");
}

/** Shows the dialog for the service's token; resolves to what was typed, or to null. */
function askForToken(wasWrong) {
  const dialog = byId("locked");
  const field = dialog.querySelector("input");
  dialog.querySelector("[data-part=wrong]").hidden = !wasWrong;
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const closed = () => resolve(dialog.returnValue === "use" ? field.value.trim() : null);
    dialog.addEventListener("close", closed, { once: true });
  });
}

function showIndex() {
  const { documents, curvature, bytes_per_document: bytes, objective } = info;
  const facts = [counted(documents, "document"), CURVATURES[curvature] ?? curvature];
  facts.push(`${counted(Math.round(bytes))} bytes each`);
  fill(byId("index-facts"), facts.join(" · "));
  if (objective === "sequence_classification") {
    fill(byId("prompt-label"), "The text");
    fill(byId("completion-label"), "The label it was given");
  }
  const exact = CANDIDATES * (info.seconds_per_document ?? Infinity);
  form.elements.namedItem("rerank").value = exact <= EXACT_SECONDS ? "recompute" : "auto";
  for (const column of Object.keys(info.metadata)) {
    form.elements.namedItem("group_by").append(el("option", { value: column }, column));
  }
}

async function begin() {
  info = await call("v1/index");
  if (!info.text) {
    fill(byId("intro"), el("p", {}, "This index holds tensors: ask it from Python."));
    form.hidden = true;
    return;
  }
  filters = new Filters(byId("filters"), info.metadata);
  reader = new Reader(byId("reader"), {
    context: info.context,
    read,
    ask: (span) => go({ ...readForm(form, filters), ...span, contrast: null }),
  });
  showIndex();
  addEventListener("hashchange", follow);
  await follow();
}

onLocked(askForToken);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (filters !== null) go(readForm(form, filters));
});
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
form.addEventListener("input", () => {
  const joined = form.prompt.value + form.completion.value;
  const glued = form.prompt.value !== "" && form.completion.value !== "";
  const space = /\s$/.test(form.prompt.value) || /^[\s\p{P}]/u.test(form.completion.value);
  byId("space-note").hidden = !glued || space || joined === "";
});
byId("stop").addEventListener("click", () => asking?.abort());
attempt(begin);
