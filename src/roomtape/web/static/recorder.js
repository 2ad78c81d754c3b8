// Records a stream as short files that stand alone, and brings them to the server in order. No page in here.
import { call, insist } from "./api.js";
import { firstPictureMs } from "./webm.js";

/** 66 Opus packets of 60 ms: a restart on that grid joins without a packet cut in two. */
export const PIECE_MS = 3960;
/** The next recorder runs before the last one ends, so that no sound is lost while an encoder starts. */
export const OVERLAP_MS = 250;
const HALF_PICTURE_MS = 1000 / 60;
const FIRST_CLUSTER_BYTES = 1 << 20;
const LATE_MS = PIECE_MS - OVERLAP_MS; // a start later than this (the machine slept) skips to the next place on the grid

/** Unix milliseconds with fractions, steady: the wall clock may be set while a recording runs. */
export const now = () => performance.timeOrigin + performance.now();

/** How this browser records, best first; null: not at all. */
export function bestType(hasVideo) {
  const types = hasVideo ? ["video/webm;codecs=vp9,opus", "video/webm;codecs=vp8,opus", "video/mp4"] : ["audio/webm;codecs=opus", "audio/mp4"];
  return globalThis.MediaRecorder ? (types.find((type) => MediaRecorder.isTypeSupported(type)) ?? null) : null;
}

/** Server's clock less ours, in microseconds: the answer with the shortest way of `tries`. */
export async function clockOffsetUs(tries) {
  let best = { way: Infinity, offset: 0 };
  for (let n = 0; n < tries; n += 1) {
    const sent = now();
    const { now_us: theirs } = await call("GET", "/api/v1/clock", { timeoutMs: 5000 });
    const back = now();
    if (back - sent < best.way) best = { way: back - sent, offset: Math.round(theirs - ((sent + back) / 2) * 1000) };
  }
  return best.offset;
}

class Ticker {
  #worker = new Worker(new URL("./tick.js", import.meta.url));
  #waiting = new Map();
  #last = 0;
  constructor() {
    this.#worker.onmessage = ({ data: id }) => {
      this.#waiting.get(id)?.();
      this.#waiting.delete(id);
    };
  }
  at(time, then) {
    const id = (this.#last += 1);
    this.#waiting.set(id, then);
    this.#worker.postMessage({ id, delay: Math.max(0, time - now()) });
  }
  end() {
    this.#waiting.clear();
    this.#worker.terminate();
  }
}

/** Tells when the camera took its pictures, from the preview: Unix milliseconds. Knows nothing while the page is hidden, or where a browser does not say it. */
export class PictureClock {
  #taken = [];

  constructor(video) {
    const next = (_, { captureTime }) => {
      if (captureTime) this.#add(performance.timeOrigin + captureTime);
      if (this.#taken.length > 400) this.#taken.splice(0, 200);
      video.requestVideoFrameCallback(next);
    };
    video.requestVideoFrameCallback?.(next);
  }

  /** A busy page is not told of every picture: those between stand at even distances. */
  #add(time) {
    const last = this.#taken.at(-1) ?? time;
    const recent = this.#taken.slice(-16);
    const every = recent.slice(1).map((one, n) => one - recent[n]).sort((a, b) => a - b)[recent.length >> 1];
    const steps = Math.round((time - last) / every);
    if (steps > 1 && steps < 8) for (let n = 1; n < steps; n += 1) this.#taken.push(last + ((time - last) * n) / steps);
    this.#taken.push(time);
  }

  /** The first picture taken at or after a moment; null: not known. */
  firstAfter(moment) {
    const found = this.#taken.find((time) => time >= moment);
    return found !== undefined && found - moment < 100 ? found : null;
  }

  /** Milliseconds to wait so that a start falls clear between two pictures: within 6 ms after one, either may be the first that is recorded. */
  dodge() {
    const [last, before] = [this.#taken.at(-1), this.#taken.at(-2)];
    if (!before || now() - last > 100) return 0;
    const every = last - before;
    const since = (now() - last) % every;
    if (since < 6) return 7 - since;
    return every - since < 1 ? every - since + 7 : 0;
  }
}

/**
 * Restarts MediaRecorder on a grid of 3.96 s counted from the first start, so lateness never adds up.
 * `onPiece({index, blob, startedAt, durationMs})` gets every file, in order of index; `onEnd(error or null)` comes once, after the last one.
 *
 * startedAt is the time of the first sample, found so (measured in Chromium 156 with a camera and a microphone of known content):
 * - The start() call is nearer to it than the `start` event. Over six restarts the first sample keeps its distance to the call within 5 ms (VP8) and 22 ms
 *   (VP9), to the event only within 17 and 46 ms, for the event waits its turn behind the encoder's set-up.
 * - A file begins with whatever comes first, mostly the first picture that the camera took after the call, and all else is laid out from there. So the call
 *   alone is up to one picture early (26 ms of spread over six pieces); the capture time that the preview tells is right within 2 ms. Where sound came first
 *   (pictures are lost on a busy machine), the file says how much later its first picture stands.
 * Where that is not known, half a picture is added to the call.
 */
export class PieceRecorder {
  #stream;
  #options;
  #onPiece;
  #onEnd;
  #pictures;
  #ticker = new Ticker();
  #t0 = 0;
  #place = 0;
  #index = 0;
  #current = null;
  #running = new Set();
  #ready = new Map();
  #next = 1;
  #stopping = false;
  #error = null;

  constructor(stream, { mimeType, onPiece, onEnd, pictures = null, videoBitsPerSecond = 1_500_000, audioBitsPerSecond = 64_000 }) {
    this.#stream = stream;
    this.#onPiece = onPiece;
    this.#onEnd = onEnd;
    this.#pictures = pictures;
    this.#options = { mimeType, videoBitsPerSecond, audioBitsPerSecond };
    if (mimeType.startsWith("video/mp4")) this.#options.videoKeyFrameIntervalDuration = 500; // MP4 is flushed at key frames only
  }

  get startedAt() {
    return this.#t0;
  }

  start() {
    this.#t0 = now();
    if (!this.#begin()) return;
    this.#t0 = this.#current.startedAt;
    this.#schedule();
  }

  stop() {
    if (this.#stopping) return;
    this.#stopping = true;
    this.#ticker.end();
    for (const piece of this.#running) this.#finish(piece);
    if (!this.#running.size) this.#onEnd(this.#error); // not even the first recorder began
  }

  #schedule() {
    this.#place += 1;
    while (now() > this.#t0 + this.#place * PIECE_MS + LATE_MS) this.#place += 1;
    this.#ticker.at(this.#t0 + this.#place * PIECE_MS, () => {
      const wait = this.#pictures?.dodge() ?? 0;
      if (wait) this.#ticker.at(now() + wait, () => this.#change());
      else this.#change();
    });
  }

  #change() {
    const last = this.#current;
    if (!this.#begin()) return;
    this.#ticker.at(this.#current.startedAt + OVERLAP_MS, () => this.#finish(last));
    this.#schedule();
  }

  async #firstSample(piece, blob) {
    if (!this.#pictures) return piece.startedAt;
    const laterMs = blob.type.includes("webm") ? firstPictureMs(await blob.slice(0, FIRST_CLUSTER_BYTES).arrayBuffer()) : 0;
    const taken = this.#pictures.firstAfter(piece.startedAt + laterMs);
    return taken === null ? piece.startedAt + HALF_PICTURE_MS : taken - laterMs;
  }

  #begin() {
    const piece = { index: (this.#index += 1), parts: [], recorder: null, startedAt: 0, endedAt: 0 };
    try {
      piece.recorder = new MediaRecorder(this.#stream, this.#options);
      piece.recorder.ondataavailable = ({ data }) => data.size && piece.parts.push(data);
      piece.recorder.onerror = ({ error }) => (this.#error ??= error);
      piece.recorder.onstop = () => this.#done(piece);
      piece.startedAt = now();
      piece.recorder.start();
    } catch (error) {
      this.#index -= 1;
      this.#error ??= error;
      this.stop();
      return false;
    }
    this.#running.add(piece);
    this.#current = piece;
    return true;
  }

  #finish(piece) {
    piece.endedAt ||= now();
    if (piece.recorder.state !== "inactive") piece.recorder.stop();
  }

  async #done(piece) {
    piece.endedAt ||= now();
    if (piece === this.#current && !this.#stopping) this.stop(); // it ended by itself: every device is gone
    const blob = new Blob(piece.parts, { type: piece.recorder.mimeType });
    const startedAt = await this.#firstSample(piece, blob);
    this.#ready.set(piece.index, { index: piece.index, blob, startedAt, durationMs: Math.max(1, piece.endedAt - startedAt) });
    for (let due; (due = this.#ready.get(this.#next)); this.#next += 1) {
      this.#ready.delete(this.#next);
      this.#onPiece(due);
    }
    this.#running.delete(piece);
    if (!this.#running.size && this.#stopping) this.#onEnd(this.#error);
  }
}

async function sha256(buffer) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", buffer));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Sends pieces in order, each until the server has answered that it is safe. Pieces live in memory only.
 * `onChange()` after every change; `onWait(problem or null)` while the server does not take them; `onRefused(problem)` once, then nothing more is sent.
 */
export class Uploader {
  #where;
  #on;
  #queue = [];
  #busy = false;
  #offsetUs = null;
  #firstAt = null;
  refused = null;
  safeUntil = null; // Unix ms up to which everything is on the server
  lastIndex = 0;
  sent = 0;

  constructor(where, { onChange = () => {}, onWait = () => {}, onRefused = () => {} }) {
    this.#where = where;
    this.#on = { onChange, onWait, onRefused };
  }

  set offsetUs(value) {
    this.#offsetUs = value;
  }
  get unsent() {
    return this.#queue;
  }

  add(piece) {
    if (!piece.blob.size) return; // no sample came in it
    // The server wants 1, 2, 3 …: an empty piece must leave no hole in the numbers.
    this.lastIndex += 1;
    this.#firstAt ??= piece.startedAt;
    this.#queue.push({ ...piece, index: this.lastIndex });
    this.#on.onChange();
    this.#work();
  }

  /** Everything that was added is safe; throws the Problem if the server refused. */
  async drained() {
    while (this.#queue.length) {
      if (this.refused) throw this.refused;
      await new Promise((done) => (this.#wake = done));
    }
  }
  #wake = () => {};

  async #work() {
    if (this.#busy || this.refused) return;
    this.#busy = true;
    try {
      while (this.#queue.length) {
        await this.#send(this.#queue[0]);
        const done = this.#queue.shift();
        this.sent += 1;
        this.safeUntil = this.#queue.length ? this.#queue[0].startedAt : done.startedAt + done.durationMs;
        this.#on.onWait(null);
        this.#on.onChange();
      }
    } catch (problem) {
      this.refused = problem;
      this.#on.onRefused(problem);
    } finally {
      this.#busy = false;
      this.#wake();
    }
  }

  async #send(piece) {
    const body = await piece.blob.arrayBuffer();
    const query = new URLSearchParams({
      meetingId: this.#where.meetingId,
      recordingId: this.#where.recordingId,
      trackId: this.#where.trackId,
      segmentIndex: piece.index,
      startedAt: piece.startedAt.toFixed(3),
      durationMs: piece.durationMs.toFixed(3),
      sha256: await sha256(body),
      mimeType: piece.blob.type,
    });
    if (this.#offsetUs !== null) query.set("clockOffsetUs", this.#offsetUs);
    await insist(
      () => call("POST", `/api/v1/meetings/upload-segment?${query}`, { body, headers: { "Content-Type": piece.blob.type } }),
      { waiting: this.#on.onWait },
    );
  }
}
