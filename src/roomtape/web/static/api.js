// Talks to the API as the signed-in person, and says times, sizes and failures in words. Used by every page.

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";

export const userId = meta("user-id");
export const signedIn = Boolean(document.querySelector('meta[name="csrf-token"]'));
let csrf = meta("csrf-token");

/** An answer that is not a success: RFC 9457 problem details. status 0: no answer at all. */
export class Problem extends Error {
  constructor(status, details = {}, retryAfterS = 0) {
    super(details.detail || details.title || (status ? `The server answered ${status}.` : "The server cannot be reached."));
    this.status = status;
    this.code = details.code ?? (status ? `http_${status}` : "offline");
    this.details = details;
    this.retryAfterS = retryAfterS;
  }
  /** Worth asking again with the same bytes: nothing was decided about them. */
  get passing() {
    return this.status === 0 || this.status >= 500 || [401, 408, 425, 429].includes(this.status) || this.code === "csrf";
  }
}

/** One request. `json` or raw `body`; writes carry the session's CSRF token. Returns the JSON or null; throws Problem. */
export async function call(method, path, options) {
  try {
    return await once(method, path, options);
  } catch (problem) {
    if (problem.code !== "csrf") throw problem;
    await renew();
    return once(method, path, options);
  }
}

/** Takes the token of the session that holds now: who signs out and in again, in another tab, has another. Throws Problem 401 while this page's person is not signed in. */
export async function renew() {
  let answer, text;
  try {
    answer = await fetch("/record", { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(10_000) });
    text = await answer.text();
  } catch {
    throw new Problem(0);
  }
  if (!answer.ok) throw new Problem(answer.status);
  const fresh = new DOMParser().parseFromString(text, "text/html");
  const read = (name) => fresh.querySelector(`meta[name="${name}"]`)?.content;
  if (read("user-id") !== userId) throw new Problem(401, { code: "not_signed_in", detail: `${userId} is not signed in any more.` });
  csrf = read("csrf-token");
}

async function once(method, path, { json, body, headers = {}, timeoutMs = 60_000, keepalive = false } = {}) {
  const sent = new Headers(headers);
  if (method !== "GET") sent.set("X-CSRF-Token", csrf);
  if (json !== undefined) sent.set("Content-Type", "application/json");
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: sent,
      body: json === undefined ? body : JSON.stringify(json),
      keepalive,
      cache: "no-store",
      credentials: "same-origin",
      signal: AbortSignal.timeout(timeoutMs),
    });
    const text = await answer.text();
    const value = text && answer.headers.get("Content-Type")?.includes("json") ? JSON.parse(text) : null;
    if (answer.ok) return value;
    throw new Problem(answer.status, value ?? {}, Number(answer.headers.get("Retry-After")) || 0);
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(0); // refused, cut or too slow: the browser does not say which
  }
}

/** Asks again until the answer decides something. `waiting(problem)` is told of each failure, `alive(problem)` false ends it with that failure. */
export async function insist(ask, { waiting = () => {}, alive = () => true, firstMs = 500, longestMs = 15_000 } = {}) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await ask();
    } catch (problem) {
      if (!(problem instanceof Problem) || !problem.passing || !alive(problem)) throw problem;
      waiting(problem);
      const most = Math.min(longestMs, firstMs * 2 ** tries);
      await sleep(Math.max(problem.retryAfterS * 1000, most * (0.5 + Math.random() / 2))); // jitter: many recorders come back at once
    }
  }
}

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** 84 -> 1:24, 3753 -> 1:02:33. Never rounded up. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** 8 -> 8 s, 84 -> 1:24. */
export const span = (seconds) => (seconds < 60 ? `${Math.floor(Math.max(0, seconds))} s` : clock(seconds));

export function bytes(size) {
  if (size < 1000) return `${size} B`;
  for (const [unit, base] of [["kB", 1e3], ["MB", 1e6], ["GB", 1e9]]) {
    if (size < base * 1000 || unit === "GB") return `${(size / base).toFixed(size < base * 10 ? 1 : 0)} ${unit}`;
  }
}

/** Shows a sentence in an element that is a live region, `commands` set as such, with the code at the end for whoever helps; empty hides it. */
export function say(element, sentence, code = "") {
  const parts = sentence.split(/`([^`]+)`/);
  element.replaceChildren(...parts.map((part, n) => (n % 2 ? Object.assign(document.createElement("code"), { textContent: part }) : part)));
  if (sentence && code) {
    const small = document.createElement("small");
    small.textContent = ` ${code}`;
    element.append(small);
  }
  element.hidden = !sentence;
}
