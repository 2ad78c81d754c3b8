// The list moves by itself: what starts, stops or is finished elsewhere is seen here without a reload.
import { clock } from "./api.js";
import { calmly, follow, people, refresh } from "./live.js";

people();
follow(calmly(400, () => refresh("library")));
setInterval(() => {
  for (const length of document.querySelectorAll("[data-since]:not([data-still])")) {
    length.textContent = clock((Date.now() - new Date(length.dataset.since)) / 1000);
  }
}, 1000);
