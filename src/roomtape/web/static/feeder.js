// Plays the pieces of a recording through Media Source while it still runs, each at its own place on the recording's clock.
import { call, sleep } from "./api.js";

const POLL_MS = 2000;
const BEHIND_S = 60; // what stays in memory behind the playhead
const AHEAD_S = 120; // and before it
const LIVE_EDGE_S = 6; // "live" is this far from the last piece: one piece and the way it takes
const HOLE_S = 0.05;
const BOTH = /video\/.*(opus|mp4a|vorbis)/; // picture and sound in one

/**
 * `stream()` answers the address of stream.json with a token that holds now. `onChange({behindS, live, endS, ended})` after each poll.
 * One source buffer for each track that plays: the first with a picture, and the first of sound if its pieces do not carry both.
 */
export class Feeder {
  #video;
  #stream;
  #onChange;
  #media = null;
  #lanes = new Map();
  #after = null;
  #closed = false;
  #ended = false;
  #sought = false;
  #patience = 4;

  constructor(video, { stream, onChange }) {
    this.#video = video;
    this.#stream = stream;
    this.#onChange = onChange;
  }

  static supports(type) {
    return Boolean(globalThis.MediaSource?.isTypeSupported(type));
  }

  get endS() {
    return Math.max(0, ...[...this.#lanes.values()].map((lane) => lane.endS));
  }

  /** Feeds until closed, or until the recording has ended and all of it is in. Throws what Media Source or the server refuses for good. */
  async run() {
    this.#media = new MediaSource();
    this.#video.src = URL.createObjectURL(this.#media);
    await new Promise((done) => this.#media.addEventListener("sourceopen", done, { once: true }));
    URL.revokeObjectURL(this.#video.src);
    for (;;) {
      const last = this.#ended; // read before the poll: what comes after the end is asked for once more
      if (!(await this.#poll()) && this.#closed) return;
      await this.#feed();
      if (this.#closed) return;
      if (last && [...this.#lanes.values()].every((lane) => !lane.waiting.length)) break;
      this.#onChange({ endS: this.endS, behindS: Math.max(0, this.endS - this.#video.currentTime), ended: this.#ended });
      await sleep(POLL_MS);
    }
    if (this.#media.readyState === "open") this.#media.endOfStream();
    this.#onChange({ endS: this.endS, behindS: Math.max(0, this.endS - this.#video.currentTime), ended: true });
  }

  /** The recording has stopped: what is there is all there will be. */
  end() {
    this.#ended = true;
  }

  close() {
    this.#closed = true;
  }

  goLive() {
    this.#video.currentTime = Math.max(0, this.endS - LIVE_EDGE_S);
    this.#video.play().catch(() => {}); // a browser that wants a click first shows its own button
  }

  async #poll() {
    const url = new URL(await this.#stream(), location.href);
    if (this.#after !== null) url.searchParams.set("after", this.#after);
    let answer;
    try {
      answer = await call("GET", url.href, { timeoutMs: 10_000 });
    } catch (problem) {
      if (problem.passing) return false; // the next poll asks again
      throw problem;
    }
    const chosen = this.#choose(answer.tracks);
    if (!chosen.length && !this.#lanes.size) return true; // nothing taken yet: ask for the same again
    this.#after = answer.next ?? this.#after;
    for (const track of chosen) {
      const lane = this.#lanes.get(track.id) ?? this.#open(track);
      for (const range of track.ranges) {
        lane.waiting.push({ startS: range.start_us / 1e6, endS: (range.start_us + range.duration_us) / 1e6, url: new URL(range.url, url).href, offsetS: (range.offset_us ?? 0) / 1e6 });
        lane.endS = Math.max(lane.endS, (range.start_us + range.duration_us) / 1e6);
      }
      lane.waiting.sort((a, b) => a.startS - b.startS);
    }
    return true;
  }

  #choose(tracks) {
    const known = tracks.filter((track) => this.#lanes.has(track.id));
    const fresh = tracks.filter((track) => !this.#lanes.has(track.id) && track.ranges.length && Feeder.supports(track.mime_type));
    if (!this.#lanes.size) {
      const picture = fresh.find((track) => track.kind === "video");
      const carriesBoth = picture && BOTH.test(picture.mime_type);
      const sounds = fresh.filter((track) => track.kind === "audio");
      const sound = sounds.find((track) => track.participant_id === picture?.participant_id) ?? sounds[0];
      if (!carriesBoth && !(picture && sound) && !this.#ended && (this.#patience -= 1) > 0) return []; // the other one's first piece is on its way
      return [picture, carriesBoth ? null : sound].filter(Boolean);
    }
    // Media Source takes no further source buffer once something plays, so what joins later is not heard here; the file has it.
    return known;
  }

  #open(track) {
    const buffer = this.#media.addSourceBuffer(track.mime_type);
    const lane = { buffer, waiting: [], endS: 0, had: [] };
    this.#lanes.set(track.id, lane);
    return lane;
  }

  async #feed() {
    for (const lane of this.#lanes.values()) {
      if (!this.#sought && lane.waiting.length) this.#seekFirst();
      for (let due; (due = this.#due(lane)); ) {
        const bytes = await this.#fetch(due);
        if (!bytes || this.#closed) break; // the next round asks again
        if (!(await this.#append(lane, due, bytes))) break;
        lane.waiting.splice(lane.waiting.indexOf(due), 1);
        lane.had.push(due);
      }
      await this.#trim(lane, this.#video.currentTime - BEHIND_S);
    }
    this.#jumpHole();
  }

  #seekFirst() {
    this.#sought = true;
    const starts = [...this.#lanes.values()].flatMap((lane) => lane.waiting.map((range) => range.startS));
    if (this.#ended || this.endS < 2 * LIVE_EDGE_S) this.#video.currentTime = Math.min(...starts);
    else this.#video.currentTime = Math.max(0, this.endS - LIVE_EDGE_S);
  }

  /** The next range around the playhead; ranges that were let go come back when somebody seeks to them. */
  #due(lane) {
    const from = this.#video.currentTime - 1;
    const until = this.#video.currentTime + AHEAD_S;
    const gone = lane.had.filter((range) => range.endS > from && range.startS < until && !covered(lane.buffer, range));
    for (const range of gone) {
      lane.had.splice(lane.had.indexOf(range), 1);
      if ((range.tries = (range.tries ?? 0) + 1) < 4) lane.waiting.push(range); // a piece that holds nothing would come for ever
    }
    lane.waiting.sort((a, b) => a.startS - b.startS);
    return lane.waiting.find((range) => range.endS > from && range.startS < until);
  }

  async #fetch(range) {
    try {
      const answer = await fetch(range.url, { signal: AbortSignal.timeout(20_000), credentials: "same-origin" });
      return answer.ok ? await answer.arrayBuffer() : null;
    } catch {
      return null;
    }
  }

  async #append(lane, range, bytes) {
    const { buffer } = lane;
    const keep = [BEHIND_S, 20, 5];
    for (;;) {
      try {
        if (buffer.timestampOffset !== range.offsetS) buffer.timestampOffset = range.offsetS;
        buffer.appendBuffer(bytes);
        break;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        if (!keep.length) return false; // played time frees room
        await this.#trim(lane, this.#video.currentTime - keep.shift());
      }
    }
    await idle(buffer);
    return true;
  }

  async #trim(lane, untilS) {
    const { buffer } = lane;
    if (!buffer.buffered.length || untilS <= buffer.buffered.start(0) + 1) return;
    buffer.remove(0, untilS);
    await idle(buffer);
  }

  /** Gaps stay gaps, but nobody waits in front of one: the playhead goes to what comes after. */
  #jumpHole() {
    const { currentTime, buffered, paused } = this.#video;
    if (paused && currentTime > 0) return;
    for (let n = 0; n < buffered.length; n += 1) {
      if (currentTime >= buffered.start(n) - 0.001 && currentTime < buffered.end(n) - HOLE_S) return;
      if (buffered.start(n) > currentTime) {
        this.#video.currentTime = buffered.start(n) + 0.001;
        return;
      }
    }
  }
}

function covered(buffer, range) {
  const middle = (range.startS + range.endS) / 2;
  for (let n = 0; n < buffer.buffered.length; n += 1) {
    if (buffer.buffered.start(n) <= middle && middle <= buffer.buffered.end(n)) return true;
  }
  return false;
}

const idle = (buffer) => (buffer.updating ? new Promise((done, fail) => {
  buffer.addEventListener("updateend", done, { once: true });
  buffer.addEventListener("error", () => fail(new Error("The browser could not take a piece of this recording.")), { once: true });
}) : Promise.resolve());
