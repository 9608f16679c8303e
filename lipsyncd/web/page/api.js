/** Requests to the server that this page came from. Each refusal is a `Refusal` with words for people. */

const MOST_UPLOADS = 3; // at a time, of the 16 that the server receives

/** What the server answered in place of what was asked for; `status` 0 when it could not be reached. */
export class Refusal extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Called when the server no longer knows this browser: the page shows the form for the key. */
export const onSignedOut = { call: () => {} };

const UNREACHABLE = "The server does not answer. This page goes on by itself as soon as it does.";

/** Send JSON, receive JSON; null for an answer without a body. */
export async function call(method, path, body, headers = {}) {
  const response = await request(method, path, body, headers);
  return response.status === 204 ? null : response.json();
}

/** The same for an answer that is no JSON. */
export async function callForBlob(method, path, body, signal) {
  return (await request(method, path, body, {}, signal)).blob();
}

async function request(method, path, body, headers = {}, signal = undefined) {
  const sent = body === undefined ? { headers } : { headers: { "Content-Type": "application/json", ...headers }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, { method, signal, ...sent });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, UNREACHABLE);
  }
  if (response.ok) return response;
  throw refusalOf(response.status, await response.text(), path);
}

function refusalOf(status, text, path) {
  if (status === 401 && path !== "/session") onSignedOut.call();
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // A proxy in front answered with a page of its own: the number is all that is known.
  }
  const details = body.details ?? {};
  const faults = Object.values(details).map((fault) => fault?.message).filter(Boolean);
  const message = faults.length ? faults.join("; ") : body.description;
  return new Refusal(status, sentence(message || `The server answered with ${status}.`), details.code ?? "");
}

/** With a capital in front and a full stop behind. */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

let running = 0;
const waiting = [];

/**
 * Upload a file, at most three at a time.
 *
 * @param {string} path such as /images
 * @param {string} field the name of the form's part
 * @param {File} file
 * @param {(fraction: number) => void} onprogress 0 to 1; only XMLHttpRequest tells it
 * @param {AbortSignal} signal
 */
export async function upload(path, field, file, onprogress, signal) {
  if (running >= MOST_UPLOADS) await new Promise((resolve) => waiting.push(resolve));
  running += 1;
  try {
    return await send(path, field, file, onprogress, signal);
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}

function send(path, field, file, onprogress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append(field, file, file.name);
    const sending = new XMLHttpRequest();
    const stopped = () => reject(new DOMException("stopped", "AbortError"));
    if (signal.aborted) return void stopped();
    signal.addEventListener("abort", () => sending.abort(), { once: true });
    sending.upload.onprogress = (event) => event.lengthComputable && onprogress(event.loaded / event.total);
    sending.onabort = stopped;
    sending.onerror = () => reject(new Refusal(0, UNREACHABLE));
    sending.onload = () => {
      if (sending.status < 300) resolve(JSON.parse(sending.responseText));
      else reject(refusalOf(sending.status, sending.responseText, path));
    };
    sending.open("POST", path);
    sending.send(form);
  });
}

/** The part of an address that is this server's, whatever name the address has: the page may load nothing else. */
export function localPath(address) {
  const url = new URL(address, location.href);
  return url.pathname + url.search;
}
