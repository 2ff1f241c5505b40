// The server: requests with the API key, streams of server-sent events, and errors of a known kind.

const KEY = "gemwright.key";

export const key = {
  get value() {
    return sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY) ?? "";
  },
  get kept() {
    return localStorage.getItem(KEY) !== null;
  },
  /** Keep the key for this tab, or in the browser; an empty one is forgotten. */
  set(value, keep) {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
    if (value) (keep ? localStorage : sessionStorage).setItem(KEY, value);
  },
};

/** An error of the server: `kind` is key, busy, loading, gone, cut or refused. */
export class ServerError extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const KINDS = { 401: "key", 429: "busy", 503: "loading" };
const GONE = "The server does not answer. Check that gemwright serve is running and that this device can reach it.";

async function errorOf(response) {
  let message = `The server answered ${response.status} ${response.statusText}.`;
  try {
    const { error } = await response.json();
    message = (typeof error === "string" ? error : error?.message) || message;
  } catch { /* the body is not JSON */ }
  const seconds = Number(response.headers.get("Retry-After"));
  if (response.status === 429 && seconds > 0) message += ` Try again in ${seconds} s.`;
  return new ServerError(KINDS[response.status] ?? "refused", message, seconds > 0 ? seconds : null);
}

async function send(path, { body, signal } = {}) {
  const headers = key.value ? { Authorization: `Bearer ${key.value}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError("gone", GONE);
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Return the JSON of a path; with a body, post it. */
export async function json(path, options) {
  return (await send(path, options)).json();
}

/** Post a request and yield the objects of its event stream. An end without [DONE] is an error. */
export async function* stream(path, body, signal) {
  const response = await send(path, { body: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
  for await (const data of events(response.body.pipeThrough(new TextDecoderStream()), signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError("refused", chunk.error.message ?? String(chunk.error));
    yield chunk;
  }
  throw new ServerError("cut", "The connection ended before the reply was complete.");
}

async function* events(text, signal) {
  const reader = text.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader, signal);
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader, signal) {
  try {
    return await reader.read();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ServerError("cut", "The connection was lost before the reply was complete.");
  }
}

/** Return [token, logprob, [[token, logprob], …]] for each token of a chunk, from either of OpenAI's two shapes. */
export function tokensOf(logprobs) {
  if (!logprobs) return [];
  if (logprobs.content) {
    return logprobs.content.map((t) => [t.token, t.logprob, (t.top_logprobs ?? []).map((o) => [o.token, o.logprob])]);
  }
  return (logprobs.tokens ?? []).map((token, i) => [
    token, logprobs.token_logprobs[i], Object.entries(logprobs.top_logprobs?.[i] ?? {}),
  ]);
}
