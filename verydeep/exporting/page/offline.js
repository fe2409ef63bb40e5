// Keeps what the page is made of in the browser, and answers with it where the network does not.

const FILES = ["./", "style.css", "photo.css", "photo.js", "page.js"]; // what came before this did

addEventListener("install", (event) => {
  skipWaiting();
  event.waitUntil(caches.open("page").then((kept) => kept.addAll(FILES)));
});
addEventListener("activate", (event) => event.waitUntil(clients.claim()));
addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== location.origin) return;
  event.respondWith(
    fetch(request).then(
      async (answer) => {
        if (answer.ok) {
          const copy = answer.clone();
          event.waitUntil(caches.open("page").then((kept) => kept.put(request, copy)).catch(() => {})); // full
        }
        return answer;
      },
      async (error) => {
        const answer = await caches.match(request, { ignoreSearch: true });
        if (!answer) throw error;
        return answer;
      },
    ),
  );
});
