// The list moves by itself: what starts, grows, stops or is finished elsewhere is seen here without a reload.
import { calmly, follow, people, refresh } from "./live.js";

people();
const moved = calmly(400, () => refresh("library"));
const grown = calmly(4000, () => refresh("library")); // lengths and sizes: as often as one recorder's pieces come, however many recorders there are
follow((event) => (event?.type === "segment.committed" ? grown() : moved()), ["segment.committed"]);
