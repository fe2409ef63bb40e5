// Keeps what the page is made of in the browser, and answers with it where the network does not.

const BEFORE = ["./", "style.css", "photo.css", "photo.js", "page.js"]; // what came before this did
const LATER = ["index.html", "worker.js", "resize.js", "page.json", "model.onnx.gz", "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
// nothing of another page that has this address one day
const OWN = new Set([...BEFORE, ...LATER].map((name) => new URL(name, location).href));
const [ABOUT, MODEL] = ["page.json", "model.onnx.gz"].map((name) => new URL(name, location).href);

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open("page").then((kept) => kept.addAll(BEFORE)));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && OWN.has(request.url)) event.respondWith(answered(event, request));
});

// page.json is kept with its model and not before: where that does not come, the two from before stay.
async function keep(request, answer) {
  const about = request.url === MODEL ? await fetch(ABOUT, { cache: "no-cache" }) : null;
  if (request.url === ABOUT || (about && !about.ok)) return;
  const kept = await caches.open("page");
  await kept.put(request, answer);
  if (about) await kept.put(ABOUT, about);
}

async function answered(event, request) {
  const answer = await fetch(request).catch(() => null);
  if (answer && answer.status < 400) {
    const may = answer.ok && !(answer.headers.get("cache-control") || "").includes("no-store");
    if (may) event.waitUntil(keep(request, answer.clone()).catch(() => {})); // full
    return answer;
  }
  return (await caches.match(request)) || answer || Response.error();
}
