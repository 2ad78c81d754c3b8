// The list moves by itself: what starts, stops or is finished elsewhere is seen here without a reload.
import { calmly, follow, people, refresh } from "./live.js";

people();
follow(calmly(400, () => refresh("library")));
