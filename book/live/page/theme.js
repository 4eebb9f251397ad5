// Light or dark, before anything is painted. The book's site remembers the choice under "theme".
// (A plain script: a module would run after the first paint.)
(() => {
  try {
    const theme = localStorage.getItem("theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage can be switched off; then the system's choice holds.
  }
})();
