// Light and dark, and the projector mode: large, high in contrast, full screen.

import { $, foldSettings } from "./controls.js";

const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => (root.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";

export function connectModes() {
  const name = () => ($("theme").textContent = isDark() ? "Light" : "Dark");
  name();
  systemDark.addEventListener("change", name);
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    name();
    try {
      localStorage.setItem("theme", root.dataset.theme); // as the book's site does,
      localStorage.setItem("mode", root.dataset.theme); // under these two names
    } catch {
      // Storage can be switched off; the choice then lasts as long as the page.
    }
  });

  $("projector").addEventListener("click", () => {
    const on = !isProjecting();
    project(on);
    foldSettings(on);
    if (on) root.requestFullscreen?.().catch(() => {}); // It may be forbidden, as in a frame.
    else if (document.fullscreenElement) document.exitFullscreen();
  });
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement) project(false); // The Escape key has left it.
  });
  // In a frame within a chapter there is less around the bench, and the settings come last: for
  // the eye, and for the Tab key.
  root.toggleAttribute("data-embed", isFramed);
  if (isFramed) $("bench").append($("settings"));
  followMode();
}

/** Whether the page stands in a frame within a chapter. */
export const isFramed = window !== window.parent;

const isProjecting = () => root.hasAttribute("data-projector");

function project(on) {
  root.toggleAttribute("data-projector", on);
  $("projector").setAttribute("aria-pressed", String(on));
  window.history.replaceState(null, "", withMode(location.hash));
}

/** Take the mode from the page's link. A link that does not name it, as an older one, keeps it. */
export function followMode() {
  const asked = new URLSearchParams(location.hash.slice(1)).get("projector") === "1";
  if (asked || isProjecting()) project(!isFramed); // A frame has no button to leave it.
}

/** A link with the mode in it: a copied one opens as the page is seen. */
export function withMode(link) {
  const parts = new URLSearchParams(link.slice(1));
  if (isProjecting()) parts.set("projector", "1");
  else parts.delete("projector");
  return parts.size ? `#${parts}` : "";
}
