// Talks to the service that this page came from, and to nothing else.

const TOKEN = "wherefrom-token";

/** What the service, or the way to it, said no with. */
export class ServiceError extends Error {
  constructor(status, detail, retryAfter = null) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let askForToken = async () => null;

/** Says how to get a token: `ask(wasWrong)` resolves to one, or to null. */
export function onLocked(ask) {
  askForToken = ask;
}

/** The JSON of a GET, or of a POST where there is a body. */
export async function call(path, body = undefined, signal = undefined) {
  const response = await request(path, body, signal);
  return reading(response.json());
}

/** The server-sent events of a POST, as `{kind, data}`. */
export async function* events(path, body, signal) {
  const response = await request(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reading(reader.read());
    waiting = (waiting + (value ?? "")).replaceAll("\r\n", "\n");
    const blocks = waiting.split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const event = parse(block);
      if (event) yield event;
    }
    if (done) return;
  }
}

function parse(block) {
  let kind = "message";
  const data = [];
  for (const row of block.split("\n")) {
    if (row.startsWith("event:")) kind = row.slice(6).trim();
    else if (row.startsWith("data:")) data.push(row.slice(5).replace(/^ /, ""));
  }
  return data.length ? { kind, data: JSON.parse(data.join("\n")) } : null;
}

async function request(path, body, signal) {
  for (;;) {
    const token = sessionStorage.getItem(TOKEN);
    const response = await reading(fetch(path, options(token, body, signal)));
    if (response.ok) return response;
    if (response.status !== 401) throw await refusal(response);
    await response.body?.cancel();
    const given = await askForToken(token !== null);
    if (given === null) throw new ServiceError(401, "this service wants a token");
    sessionStorage.setItem(TOKEN, given);
  }
}

function options(token, body, signal) {
  const headers = token === null ? {} : { authorization: `Bearer ${token}` };
  const common = { headers, signal, cache: "no-store", redirect: "error" };
  if (body === undefined) return common;
  headers["content-type"] = "application/json";
  return { ...common, method: "POST", body: JSON.stringify(body) };
}

async function refusal(response) {
  let detail = `the service answered ${response.status}`;
  try {
    const said = (await response.json()).detail;
    if (typeof said === "string") detail = said;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error; // a proxy's page, not the service's JSON
  }
  const wait = Number(response.headers.get("retry-after"));
  return new ServiceError(response.status, detail, wait > 0 ? wait : null);
}

/** A lost connection as an error of the service; what was stopped on purpose stays what it is. */
async function reading(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ServiceError) throw error;
    throw new ServiceError(0, "the service cannot be reached; is it still running?");
  }
}
