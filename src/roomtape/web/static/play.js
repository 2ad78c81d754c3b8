// The page of one recording: plays the file, or the pieces while it runs; name, stop, delete and bring back.
import { Problem, bytes, call, clock, say, signedIn, sleep } from "./api.js";
import { Feeder } from "./feeder.js";
import { calmly, follow, people, refresh } from "./live.js";

const $ = (id) => document.getElementById(id);
const video = $("video");
const id = $("player").dataset.id;
const path = `/api/v1/recordings/${encodeURIComponent(id)}`;
const RENEW_MS = 5 * 60_000; // a playback token lives ten minutes
const STRANGER_MS = 5000; // events are for those who are signed in: others ask
const FAR_BEHIND_S = 14; // the edge is one piece and its way behind by nature; "Go live" is for more

const status = () => $("about").dataset.status;
const running = () => ["pending", "recording", "paused"].includes(status());
const trouble = (problem) => say($("trouble"), problem.message, problem.code ?? problem.name);
const onStage = (words) => say($("stage-say"), words);

// ---- playing ----

let token = null;
let playback = null;
let renewedAt = 0;
let feeder = null;
let shown = ""; // what the element plays: "", "pieces" or an address

async function play(need) {
  const asked = { ...(token && { token }), ...(need && { need }) };
  playback = await call("POST", `${path}/playback`, { json: asked });
  token = playback.token;
  renewedAt = performance.now();
  return playback;
}

async function stream() {
  if (!playback || performance.now() - renewedAt > RENEW_MS) await play();
  return playback.stream_url;
}

/** The file this browser plays, if there is one. */
function file({ mp4_url: mp4, webm_url: webm }) {
  if (mp4 && video.canPlayType("video/mp4")) return mp4;
  if (webm && video.canPlayType("video/webm")) return webm;
  return mp4 || webm || null;
}

async function show() {
  if (status() === "deleted") return clear();
  if (!running() && "empty" in $("about").dataset) return onStage("Nothing was recorded.");
  if (status() === "failed") {
    onStage("There is nothing in here that can be played.");
    return originals().catch(trouble);
  }
  try {
    await play();
    if (running()) {
      if (shown !== "pieces") pieces();
      return;
    }
    if (shown === "pieces") return feeder.end(); // who watches live sees it to the end without a break
    const url = file(playback);
    if (url && url !== shown) [shown, video.src] = [url, url];
    if (!url && playback.stream_url) pieces();
    onStage("");
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    trouble(problem);
  }
}

async function pieces() {
  shown = "pieces";
  if (!globalThis.MediaSource) {
    if (playback.hls_url) [shown, video.src] = [playback.hls_url, playback.hls_url]; // Apple's phones play HLS themselves
    else onStage("This browser cannot play it while it runs. It plays when the recording has ended.");
    return;
  }
  const mine = (feeder = new Feeder(video, { stream, onChange: tell }));
  if (!running()) mine.end();
  onStage("Waiting for the first piece.");
  try {
    await mine.run();
  } catch (error) {
    if (mine !== feeder) return;
    trouble(error);
    toFile();
  }
}

function tell({ behindS, endS, ended }) {
  if (endS) onStage("");
  const far = !ended && behindS > FAR_BEHIND_S;
  $("behind").textContent = !endS || ended ? "" : far ? `${clock(behindS)} behind` : "Live";
  $("go-live").hidden = !far;
}

/** Leaves the pieces for the file at the same place, or at its beginning if it was seen to the end; the file can be sought through whole. */
async function toFile() {
  if (shown !== "pieces" || running()) return;
  const url = file(await play());
  if (!url) return;
  const at = video.ended ? 0 : video.currentTime;
  feeder?.close();
  feeder = null;
  [shown, video.src] = [url, url];
  if (at) video.currentTime = at;
  $("behind").textContent = "";
  $("go-live").hidden = true;
}

/** What came, as it came: where no file can be made of it, its pieces may still be of use to somebody. */
async function originals() {
  const box = $("originals");
  if (!box?.hidden) return;
  const { segments } = await call("GET", `${path}/segments`);
  box.querySelector("ul").replaceChildren(...segments.map((segment) => {
    const link = document.createElement("a");
    link.href = `${path}/segments/${segment.index}?track_id=${encodeURIComponent(segment.track_id)}`;
    link.textContent = `Piece ${segment.index} of track ${segment.track_id} (${bytes(segment.size_bytes)})`;
    const row = document.createElement("li");
    row.append(link);
    return row;
  }));
  box.hidden = !segments.length;
}

function clear() {
  feeder?.close();
  feeder = null;
  shown = "";
  video.removeAttribute("src");
  video.load();
  onStage("This recording is deleted.");
}

video.addEventListener("ended", () => toFile().catch(trouble));
video.addEventListener("error", async () => {
  if (!video.error || shown === "pieces" || !shown) return;
  const at = video.currentTime;
  const failed = shown;
  await sleep(1000);
  if (shown !== failed) return;
  try {
    const url = file(await play()); // the token may have run out while the machine slept
    if (url === failed && tries++ > 1) return onStage("This browser cannot play this file. It can be downloaded.");
    [shown, video.src] = [url, url];
    video.currentTime = at;
  } catch (problem) {
    trouble(problem);
  }
});
let tries = 0;
setInterval(() => shown && !document.hidden && play().catch(() => {}), RENEW_MS); // a failed renewal shows when bytes are refused
$("go-live").addEventListener("click", () => feeder?.goLive());

// ---- what can be done ----

document.addEventListener("click", async ({ target }) => {
  const seek = target.closest("[data-seek]");
  if (seek) {
    video.currentTime = Number(seek.dataset.seek);
    return;
  }
  const button = target.closest("[data-act]");
  if (!button) return;
  button.disabled = true;
  say($("trouble"), "");
  try {
    if (button.dataset.act === "stop") await call("POST", `${path}/stop`);
    if (button.dataset.act === "finish") {
      await call("POST", "/api/v1/meetings/complete-recording", { json: { meetingId: button.dataset.meeting, recordingId: id, allowGaps: true } });
    }
    if (button.dataset.act === "delete") await call("DELETE", path);
    if (button.dataset.act === "restore") await call("POST", `${path}/restore`);
    await refreshed();
  } catch (problem) {
    button.disabled = false;
    trouble(problem);
  }
});

const title = $("title");
let named = title?.value;
title?.addEventListener("input", () => ($("title-save").hidden = title.value.trim() === named));
title?.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  title.value = named;
  $("title-save").hidden = true;
  title.blur();
});
title?.addEventListener("change", () => $("title-form").requestSubmit());
$("title-form")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const next = title.value.trim();
  if (next === named) return;
  try {
    await call("PATCH", path, { json: { title: next } });
    named = next;
    $("title-save").hidden = true;
    $("heading").textContent = next || title.placeholder;
    document.title = `${next || title.placeholder} · Roomtape`;
    say($("trouble"), "");
  } catch (problem) {
    trouble(problem);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea, button, a, video")) return;
  const steps = { j: -10, l: 10, ArrowLeft: -5, ArrowRight: 5 };
  if (event.key === " " || event.key === "k") video.paused ? video.play() : video.pause();
  else if (event.key in steps) video.currentTime += steps[event.key];
  else if (event.key === "f") $("player").querySelector(".stage").requestFullscreen();
  else return;
  event.preventDefault();
});

// ---- joined ----

async function refreshed() {
  const before = status();
  if (!(await refresh("meta", "acts", "about"))) return;
  if (status() !== before || !shown) await show();
}

people();
show();
const again = calmly(400, refreshed);
if (signedIn) follow((event) => (event === null || event.data?.recording_id === id) && again(), ["segment.committed"]);
else setInterval(() => !["completed", "failed"].includes(status()) && again(), STRANGER_MS);
