// The page without the net: a service worker that answers from the cache that files.js fills.
//
// Each visit asks the server for files.json, the list, and takes from the net only what is new in
// it. Without a server the last list and its files make the page.

const CACHE = "sdlearn-live"; // as in engine/files.js
const BASE = self.registration.scope;
const LIST = new URL("files.json", BASE).href;

let list; // a promise: name -> hash

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const { method, mode, url } = event.request;
  if (method !== "GET" || !url.startsWith(BASE)) return;
  if (mode === "navigate" || !list) list = newestList();
  event.respondWith(answer(event.request));
});

async function answer(request) {
  const cache = await caches.open(CACHE);
  const address = new URL(request.url);
  const query = address.search.slice(1);
  address.hash = address.search = "";
  if (address.href === LIST)
    return (await fromNet()) ?? (await cache.match(LIST)) ?? Response.error();
  if (address.href === BASE) address.pathname += "index.html";
  const hash = (await list)?.get(address.href);
  const another = request.mode !== "navigate" && query && query !== hash; // edition than the list's
  if (!hash || another) return fetch(request);
  const exact = `${address.href}?${hash}`; // so that no cache on the way gives an older one
  return (await cache.match(exact)) ?? fetch(exact);
}

/** Read the list from the server, else that of the edition kept; null if there is neither. */
async function newestList() {
  const response = (await fromNet()) ?? (await caches.match(LIST, { cacheName: CACHE }));
  if (!response) return null;
  const { files } = await response.json();
  return new Map(files.map(({ name, hash }) => [new URL(name, BASE).href, hash]));
}

/** The list, past the browser's own cache; null without a server. */
async function fromNet() {
  const response = await fetch(LIST, { cache: "no-cache" }).catch(() => null);
  return response?.ok ? response : null;
}
