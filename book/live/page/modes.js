// Light and dark, and the projector mode: large, high in contrast, full screen.

import { $ } from "./controls.js";

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
    const on = !root.hasAttribute("data-projector");
    project(on);
    if (on) root.requestFullscreen?.().catch(() => {}); // It may be forbidden, as in a frame.
    else if (document.fullscreenElement) document.exitFullscreen();
  });
  document.addEventListener("fullscreenchange", () => {
    if (!document.fullscreenElement) project(false); // The Escape key has left it.
  });
  // In a frame within a chapter there is less around the bench.
  root.toggleAttribute("data-embed", window !== window.parent);
}

function project(on) {
  root.toggleAttribute("data-projector", on);
  $("projector").setAttribute("aria-pressed", String(on));
}
