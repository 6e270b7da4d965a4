// Requests to the server that this page came from, and what went wrong with them in one sentence. Knows no page.

const KEY = "nearfar-key";

/** What the server refused (its `status`), or that it is gone (status 0). */
export class Problem extends Error {
  constructor(detail, status) {
    super(detail);
    this.status = status;
  }

  /** Whether the same request may do later. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

/** The API key of this tab, "" without one. */
export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // storage is switched off
  }
}

export function keepKey(value) {
  try {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  } catch {
    // storage is switched off: the field itself still holds it
  }
}

/**
 * @param {string} path
 * @param {{method?: string, body?: BodyInit, type?: string, key?: string, signal?: AbortSignal}} request
 * @returns {Promise<any>} the JSON of the answer
 * @throws {Problem}
 */
export async function call(path, request = {}) {
  const headers = { Accept: "application/json" };
  if (request.type) headers["Content-Type"] = request.type;
  const secret = request.key ?? key();
  // A header may hold Latin letters only; a key with others cannot be right, and is refused here as the server would.
  if (/[^\x20-\x7e]/.test(secret)) throw new Problem("the API key holds letters that no key has; type it again", 401);
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const { method, body, signal } = request;
  let response, text;
  try {
    response = await fetch(path, { method, body, signal, headers });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer; trying again.", 0);
  }
  const json = parsed(text);
  if (response.ok && json !== undefined) return json;
  const told = json?.detail ? sentence(String(json.detail)) : `The server says ${response.status} ${response.statusText}`;
  throw new Problem(told, response.status);
}

export function imageUrl(id) {
  return `/v1/items/${encodeURIComponent(id)}/image`;
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
