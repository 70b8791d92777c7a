// A question: as the form holds it, and as the URL's fragment does.

const DEFAULTS = {
  prompt: "",
  completion: "",
  contrast: null,
  k: 10,
  sign: "both",
  where: {},
  rerank: "auto",
  normalise: "none",
  damping: null,
  group_by: [],
};
const FRAGMENT = "#ask=";

/** What the form asks. */
export function readForm(form, filters) {
  const value = (name) => form.elements.namedItem(name).value;
  const number = (name) => (value(name) === "" ? null : Number(value(name)));
  return {
    prompt: value("prompt"),
    completion: value("completion"),
    contrast: value("contrast") === "" ? null : value("contrast"),
    k: number("k") ?? DEFAULTS.k,
    sign: value("sign"),
    where: filters.read(),
    rerank: value("rerank"),
    normalise: value("normalise"),
    damping: number("damping"),
    group_by: value("group_by") === "" ? [] : [value("group_by")],
  };
}

/** Puts a question into the form. */
export function writeForm(form, filters, question) {
  for (const name of ["prompt", "completion", "k", "sign", "rerank", "normalise"]) {
    form.elements.namedItem(name).value = question[name];
  }
  form.elements.namedItem("contrast").value = question.contrast ?? "";
  form.elements.namedItem("damping").value = question.damping ?? "";
  form.elements.namedItem("group_by").value = question.group_by[0] ?? "";
  filters.write(question.where);
}

/** What the service is sent; answers come with everything that the page can show. */
export function requestOf(question) {
  const request = { ...question, explain: true, similarity: true };
  if (request.contrast === null) delete request.contrast;
  if (request.damping === null) delete request.damping;
  return request;
}

/** The URL's fragment of a question: it never leaves the browser, unlike a query string. */
export function toFragment(question) {
  const changed = Object.entries(question).filter(
    ([name, value]) => JSON.stringify(value) !== JSON.stringify(DEFAULTS[name]),
  );
  return FRAGMENT + encodeURIComponent(JSON.stringify(Object.fromEntries(changed)).toWellFormed());
}

/** The question of a fragment; null where it holds none that can be asked. */
export function fromFragment(fragment) {
  if (!fragment.startsWith(FRAGMENT)) return null;
  let found;
  try {
    found = JSON.parse(decodeURIComponent(fragment.slice(FRAGMENT.length)));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof URIError) return null;
    throw error;
  }
  if (typeof found?.completion !== "string") return null;
  const known = Object.entries(found).filter(([name, value]) => fits(name, value));
  return { ...DEFAULTS, ...Object.fromEntries(known) };
}

/** Links are hand-made at times: what has not the form of a choice is left at its default. */
function fits(name, value) {
  if (!Object.hasOwn(DEFAULTS, name)) return false;
  if (name === "contrast") return typeof value === "string";
  if (name === "damping") return typeof value === "number";
  if (name === "where") return value !== null && typeof value === "object" && !Array.isArray(value);
  if (name === "group_by") return Array.isArray(value) && value.every((v) => typeof v === "string");
  return typeof value === typeof DEFAULTS[name];
}
