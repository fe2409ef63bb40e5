// Keeps what the page is made of in the browser, and answers with it where the network does not.

const BEFORE = ["./", "style.css", "photo.css", "photo.js", "page.js"]; // what came before this did
const LATER = ["index.html", "worker.js", "resize.js", "page.json", "model.onnx.gz", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
// nothing of another page that has this address one day
const OWN = new Set([...BEFORE, ...LATER].map((name) => new URL(name, location).href));

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open("page").then((kept) => kept.addAll(BEFORE)));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && OWN.has(request.url)) event.respondWith(answered(event, request));
});

async function answered(event, request) {
  try {
    const answer = await fetch(request);
    if (answer.ok && !(answer.headers.get("cache-control") || "").includes("no-store")) {
      const copy = answer.clone();
      event.waitUntil(caches.open("page").then((kept) => kept.put(request, copy)).catch(() => {})); // full
    }
    return answer;
  } catch (error) {
    const answer = await caches.match(request);
    if (!answer) throw error;
    return answer;
  }
}
