// Keeps a page true while it stands: events say that something moved, the server's own page says what.

const TYPES = ["started", "paused", "resumed", "stopped", "processing", "playable", "completed", "failed", "deleted", "health"].map((word) => `recording.${word}`);

/** Calls `moved(event)` for each event about recordings (null after every new connection, since events may have been missed). */
export function follow(moved, extra = []) {
  const source = new EventSource("/api/v1/events");
  const offline = document.getElementById("offline");
  const heard = ({ data }) => moved(JSON.parse(data));
  for (const type of ["message", ...TYPES, ...extra]) source.addEventListener(type, heard);
  source.addEventListener("open", () => {
    offline.hidden = true;
    moved(null);
  });
  source.addEventListener("error", () => {
    if (offline.hidden) offline.textContent = `No connection since ${new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}. What you see is from then.`;
    offline.hidden = false;
    if (source.readyState === EventSource.CLOSED) setTimeout(() => follow(moved, extra), 5000); // a 5xx ends an EventSource for good
  });
  addEventListener("pagehide", () => source.close(), { once: true });
}

/** Fetches this page again and puts these elements in place of the old ones; focus stays where it was. Answers false if the page is not to be had. */
export async function refresh(...ids) {
  let text;
  try {
    const answer = await fetch(location.href, { cache: "no-store", headers: { Accept: "text/html" } });
    if (answer.redirected) location.reload(); // signed out
    if (!answer.ok) return false;
    text = await answer.text();
  } catch {
    return false; // away: the next event or connection comes back here
  }
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const id of ids) {
    const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
    if (!old || !next || old.isEqualNode(next)) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(next));
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  }
  people();
  return true;
}

/** Runs at most once in `ms`, and once more if it was asked for meanwhile. */
export function calmly(ms, run) {
  let timer = 0;
  return () => {
    timer ||= setTimeout(() => {
      timer = 0;
      run();
    }, ms);
  };
}

/** Times in the reader's own zone. */
export function people() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.valueOf())) time.textContent = moment.toLocaleString([], { day: "numeric", month: "long", year: "numeric", hour: "2-digit", minute: "2-digit" });
  }
}
