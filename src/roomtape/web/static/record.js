// The page that records camera and microphone: devices, level, the one button, and the truth about what is safe.
import { call, clock, insist, renew, say, sleep, span, userId, bytes } from "./api.js";
import { PictureClock, PieceRecorder, Uploader, bestType, clockOffsetUs, now } from "./recorder.js";

const $ = (id) => document.getElementById(id);
const page = {
  root: $("studio"), preview: $("preview"), camera: $("camera"), microphone: $("microphone"), title: $("title"), key: $("key"), label: $("key-label"),
  timer: $("timer"), safe: $("safe"), tape: $("tape"), trouble: $("trouble"), again: $("again"), soundOnly: $("sound-only"), cells: $("cells"),
  level: $("level"), badge: $("badge"), size: $("size"), rescue: $("rescue"), noPicture: $("no-picture"),
};
const CLOCK_EVERY_MS = 60_000;
const LOOK_EVERY_MS = 4000;
const SHORTEST_MS = 1000; // less may hold neither a picture nor a sound: encoders need a moment
const FLOOR_DB = -60;

let stream = null;
let state = "asking"; // asking | ready | starting | recording | stopping | over
let recorder = null;
let uploader = null;
let waitingSince = null;
const pictures = new PictureClock(page.preview);

function show(next) {
  state = next;
  page.root.dataset.state = next;
  page.key.disabled = !["ready", "recording"].includes(next);
  page.label.textContent = { recording: "Stop", starting: "Starting", stopping: "Sending", over: "Stopped" }[next] ?? "Record";
  page.badge.hidden = next !== "recording";
  for (const one of [page.camera, page.microphone, page.title]) one.disabled = !["asking", "ready"].includes(next);
  tell();
}

// ---- devices ----

const SENTENCES = {
  insecure: "This page was opened over plain http, and browsers give camera and microphone only to https or localhost. Open it by its https address.",
  unsupported: "This browser cannot record. A current Chrome, Edge, Firefox or Safari can.",
  NotAllowedError: "Camera and microphone are blocked for this site. Press the camera or lock symbol beside the address, allow both, then try again.",
  nothing: "Neither a camera nor a microphone is chosen. Choose at least one of them.",
  NotFoundError: "No camera and no microphone is connected. Plug one in, then try again.",
  NotReadableError: "Camera or microphone is in use by another program. Close that program, then try again.",
  OverconstrainedError: "The chosen device is not there any more. Choose another one.",
};

function wants(kind, select) {
  if (select.value === "none") return false;
  const chosen = select.value ? { deviceId: { exact: select.value } } : {};
  if (kind === "video") return { ...chosen, width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
  return { ...chosen, echoCancellation: false, noiseSuppression: false, autoGainControl: false }; // as the microphone heard it
}

async function open(asked) {
  try {
    return await navigator.mediaDevices.getUserMedia(asked);
  } catch (error) {
    if (error.name !== "NotFoundError" || !asked.audio || !asked.video) throw error;
    const there = new Set((await navigator.mediaDevices.enumerateDevices()).map((device) => device.kind));
    const left = { video: there.has("videoinput") && asked.video, audio: there.has("audioinput") && asked.audio };
    if (!left.video && !left.audio) throw error;
    return navigator.mediaDevices.getUserMedia(left); // one of the two is enough
  }
}

async function ask() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  show("asking");
  say(page.trouble, "");
  page.again.hidden = page.soundOnly.hidden = true;
  try {
    if (!window.isSecureContext) throw Object.assign(new Error(), { name: "insecure" });
    if (!navigator.mediaDevices?.getUserMedia || !bestType(true)) throw Object.assign(new Error(), { name: "unsupported" });
    const wanted = { video: wants("video", page.camera), audio: wants("audio", page.microphone) };
    if (!wanted.video && !wanted.audio) throw Object.assign(new Error(), { name: "nothing" });
    stream = await open(wanted);
  } catch (error) {
    say(page.trouble, SENTENCES[error.name] ?? `Camera and microphone could not be opened: ${error.message}`, error.name);
    page.again.hidden = ["insecure", "unsupported", "nothing"].includes(error.name);
    page.soundOnly.hidden = page.again.hidden || page.camera.value === "none";
    return;
  }
  for (const track of stream.getTracks()) track.addEventListener("ended", () => lost(track));
  const [picture] = stream.getVideoTracks();
  page.preview.srcObject = stream;
  page.noPicture.hidden = Boolean(picture);
  const { width, height } = picture?.getSettings() ?? {};
  page.size.textContent = width ? `${width} × ${height}` : "";
  page.size.hidden = !width;
  await list();
  listen();
  show("ready");
}

async function list() {
  const devices = await navigator.mediaDevices.enumerateDevices();
  for (const [select, kind, word] of [[page.camera, "videoinput", "camera"], [page.microphone, "audioinput", "microphone"]]) {
    const used = stream.getTracks().find((track) => track.kind === kind.slice(0, 5))?.getSettings().deviceId ?? "none";
    const options = devices.filter((device) => device.kind === kind).map((device, n) => new Option(device.label || `${word} ${n + 1}`, device.deviceId));
    select.replaceChildren(...options, new Option(`No ${word}`, "none"));
    select.value = used;
  }
}

function lost(track) {
  if (!stream?.getTracks().includes(track)) return;
  const word = track.kind === "video" ? "The camera" : "The microphone";
  say(page.trouble, `${word} was unplugged or taken away.${state === "recording" ? " What the other device gives is still recorded." : ""}`, "device_ended");
  page.again.hidden = state !== "ready";
}

// ---- level ----

let analyser = null;
let context = null;

function listen() {
  context?.close();
  context = analyser = null;
  if (!stream.getAudioTracks().length) return;
  context = new AudioContext();
  analyser = new AnalyserNode(context, { fftSize: 2048 });
  context.createMediaStreamSource(stream).connect(analyser);
}

let loudest = 0;

function meter() {
  let peak = 0;
  if (analyser) {
    const samples = new Float32Array(analyser.fftSize);
    analyser.getFloatTimeDomainData(samples);
    for (const sample of samples) peak = Math.max(peak, Math.abs(sample));
  }
  const db = Math.max(FLOOR_DB, peak ? 20 * Math.log10(peak) : FLOOR_DB);
  const lit = Math.round(((db - FLOOR_DB) / -FLOOR_DB) * page.cells.children.length);
  [...page.cells.children].forEach((cell, n) => cell.classList.toggle("lit", n < lit));
  page.cells.setAttribute("aria-valuenow", Math.round(db));
  loudest = Math.max(db, loudest - 0.6); // falls 10 dB a second, so a pause in speech is not called silence
  const words = !analyser ? "No microphone" : loudest <= -57 ? "No sound" : loudest > -1 ? "Too loud" : loudest < -40 ? "Quiet" : "Good level";
  if (page.level.textContent !== words) page.level.textContent = words;
}

// ---- what is safe ----

const elapsed = () => (recorder ? ((state === "recording" ? now() : stoppedAt) - recorder.startedAt) / 1000 : 0);
let stoppedAt = 0;

function safeSeconds() {
  if (!uploader?.safeUntil) return 0;
  return Math.min(elapsed(), (uploader.safeUntil - recorder.startedAt) / 1000);
}

function tell() {
  page.timer.textContent = clock(elapsed());
  if (!recorder) return;
  const safe = safeSeconds();
  const here = elapsed() - safe;
  const kept = safe >= 1 ? `${span(safe)} safe on the server` : "Nothing is on the server yet";
  let kind = "live";
  let words = `${kept}, ${span(here)} only here`;
  if (uploader.refused) [kind, words] = ["warn", `${words}. Nothing more is sent.`];
  else if (waitingSince) {
    kind = "warn";
    const { status, code, message } = waitingSince.problem;
    if (status === 401 || code === "csrf") words = `${words}. You are signed out: sign in again in another tab, as ${userId}, and it goes on by itself.`;
    else if (status) words = `${words}. ${message} Nothing is lost while this page stays open.`;
    else words = `${words}, will be sent when the server is back.${state === "stopping" ? " Keep this page open." : ""}`;
  } else if (state === "stopping") words = uploader.unsent.length ? `Keep this page open: ${span(Math.max(1, here))} to send. ${kept}.` : `All ${span(elapsed())} is safe on the server`;
  page.safe.firstElementChild.dataset.s = kind === "warn" ? "wait" : safe >= 1 ? "safe" : "here";
  const text = page.safe.lastElementChild;
  text.textContent = words;
  text.className = kind === "warn" ? "warn-text" : "";
  const grade = `${kind} ${state}`; // spoken on a change of kind, not each second
  if (grade !== spoken) $("spoken").textContent = words;
  spoken = grade;
}
let spoken = "";

function draw() {
  const boxes = [];
  for (let n = 0; n < uploader.sent; n += 1) boxes.push("safe");
  for (let n = 0; n < uploader.unsent.length; n += 1) boxes.push(waitingSince || uploader.refused ? "wait" : "here");
  if (state === "recording") boxes.push("head");
  const fit = Math.max(8, Math.floor(page.tape.clientWidth / 16));
  page.tape.replaceChildren(...boxes.slice(-fit).map((kind) => Object.assign(document.createElement("i"), { className: kind })));
  page.tape.setAttribute("aria-label", `${uploader.sent} pieces safe, ${uploader.unsent.length} only here`);
}

function rescue() {
  page.rescue.replaceChildren(...uploader.unsent.map((piece) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(piece.blob);
    link.download = `piece-${String(piece.index).padStart(4, "0")}.${piece.blob.type.includes("mp4") ? "mp4" : "webm"}`;
    link.textContent = `Save piece ${piece.index} (${bytes(piece.blob.size)})`;
    const row = document.createElement("li");
    row.append(link);
    return row;
  }));
  page.rescue.hidden = !uploader.unsent.length;
}

const REFUSALS = {
  segment_differs: "The server already has another piece with this number. What is only here was not sent: save it below, then record anew.",
  recording_completed: "This recording was closed elsewhere, so the server takes no more of it. What is only here can be saved below.",
  not_found: "This recording was deleted: nothing more of it is taken. What is only here can be saved below; the rest can be brought back from the recording's page.",
};

// ---- the button ----

async function start() {
  show("starting");
  say(page.trouble, "");
  const mimeType = bestType(stream.getVideoTracks().length > 0);
  const title = page.title.value.trim();
  let where;
  try {
    const key = crypto.randomUUID(); // an answer lost on its way must not start a second recording
    const told = { userId, mimeType, ...(title && { title }) };
    where = await insist(
      () => call("POST", "/api/v1/meetings/start-recording", { json: told, headers: { "Idempotency-Key": key }, timeoutMs: 10_000 }),
      { waiting: (problem) => say(page.trouble, `Not recording yet: ${problem.message} Trying again.`, problem.code), longestMs: 4000,
        alive: ({ status, code }) => status !== 401 && code !== "csrf" }, // who signs in later has not pressed the button
    );
  } catch (problem) {
    const out = problem.status === 401 || problem.code === "csrf";
    say(page.trouble, out ? `You are signed out: sign in again in another tab, as ${userId}, and press Record again.` : problem.message, problem.code);
    show("ready");
    return;
  }
  say(page.trouble, "");
  uploader = new Uploader(where, {
    onChange: () => { draw(); tell(); },
    onWait: (problem) => { waitingSince = problem && { problem, at: waitingSince?.at ?? now() }; draw(); },
    onRefused: (problem) => { say(page.trouble, REFUSALS[problem.code] ?? problem.message, problem.code); rescue(); stop(); },
  });
  recorder = new PieceRecorder(stream, {
    mimeType,
    pictures: stream.getVideoTracks().length ? pictures : null,
    onPiece: (piece) => { uploader.add(piece); if (uploader.refused) rescue(); },
    onEnd: (error) => finish(where, error),
  });
  measure();
  recorder.start();
  if (state !== "starting") return; // no device gave anything: it has ended
  show("recording");
  draw();
  look(where);
}

/** Whether somebody else ended it. The list of the meeting is asked: it costs the server the same however long the recording is, and lacks what is deleted. */
async function look({ meetingId, recordingId }) {
  for (;;) {
    await sleep(LOOK_EVERY_MS);
    if (state !== "recording") return;
    const answer = await call("GET", `/api/v1/recordings?room_id=${meetingId}`, { timeoutMs: 10_000 }).catch(() => null); // away or signed out: sending says so
    if (!answer || state !== "recording") continue;
    let status = answer.recordings.find((one) => one.id === recordingId)?.status;
    if (!status && (await renew().then(() => false, () => true))) continue; // it was somebody else's list: sending says who has to sign in
    if (state !== "recording") return;
    status ??= "deleted";
    if (["pending", "recording", "paused"].includes(status)) continue;
    if (status === "deleted") say(page.trouble, REFUSALS.not_found, "not_found");
    else say(page.trouble, "Stopped by somebody else. What was recorded until now is sent.", status);
    return stop();
  }
}

async function measure() {
  for (let tries = 5; ["starting", "recording"].includes(state); tries = 1) {
    try {
      uploader.offsetUs = await clockOffsetUs(tries);
    } catch { /* the server is away: the last measure holds */ }
    await sleep(CLOCK_EVERY_MS);
  }
}

async function stop() {
  if (state !== "recording") return;
  stoppedAt = Math.max(now(), recorder.startedAt + SHORTEST_MS);
  show("stopping");
  await sleep(stoppedAt - now());
  recorder.stop();
}

async function finish(where, error) {
  if (["starting", "recording"].includes(state)) { stoppedAt = now(); show("stopping"); } // it ended by itself
  if (error) say(page.trouble, `The browser stopped recording: ${error.message}`, error.name);
  draw();
  const patient = { waiting: (problem) => { waitingSince = { problem, at: now() }; tell(); } };
  try {
    await uploader.drained();
    if (!uploader.lastIndex) {
      const { tracks } = await insist(() => call("GET", `/api/v1/recordings/${where.recordingId}/tracks`), patient);
      const close = { meetingId: where.meetingId, recordingId: where.recordingId, trackId: where.trackId, allowGaps: true };
      if (tracks.length > 1) await insist(() => call("POST", "/api/v1/meetings/complete-recording", { json: close }), patient); // the others' media stays
      else await insist(() => call("POST", `/api/v1/meetings/${where.meetingId}/recording/discard`), patient);
      throw new Error("Nothing was recorded: neither camera nor microphone gave anything.");
    }
    await insist(() => call("POST", `/api/v1/recordings/${where.recordingId}/stop`), patient);
    const whole = { meetingId: where.meetingId, recordingId: where.recordingId, trackId: where.trackId, lastSegmentIndex: uploader.lastIndex };
    await insist(() => call("POST", "/api/v1/meetings/complete-recording", { json: whole }), patient);
  } catch (problem) {
    say(page.trouble, REFUSALS[problem.code] ?? problem.message, problem.code);
    show("over");
    draw();
    return;
  }
  show("over");
  location.assign(`/recordings/${where.recordingId}`);
}

// ---- joined ----

page.key.addEventListener("click", () => (state === "recording" ? stop() : state === "ready" && start()));
page.again.addEventListener("click", ask);
page.soundOnly.addEventListener("click", () => {
  page.camera.replaceChildren(new Option("No camera", "none"));
  ask();
});
page.camera.addEventListener("change", ask);
page.microphone.addEventListener("change", ask);
navigator.mediaDevices?.addEventListener("devicechange", () => state === "ready" && list());
document.addEventListener("keydown", (event) => {
  if (event.key.toLowerCase() !== "r" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  page.key.click();
});
addEventListener("beforeunload", (event) => {
  if (["starting", "recording", "stopping"].includes(state) || uploader?.unsent.length) event.preventDefault();
});
setInterval(meter, 60);
setInterval(() => state === "recording" && tell(), 250);
ask();
