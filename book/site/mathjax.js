// How MathJax draws the book's formulas. Everything it loads lies beside it, on this site.
window.MathJax = {
  tex: { inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]] },
  loader: {
    load: ["a11y/assistive-mml"],
    paths: { "mathjax-newcm": "[mathjax]/mathjax-newcm-font" },
  },
  options: {
    // The theme marks formulas; the rest of the page is text, dollars and all.
    ignoreHtmlClass: "tex2jax_ignore",
    processHtmlClass: "math",
    // Speech needs a worker, which a page opened from a folder may not start. Screen readers get
    // MathML instead.
    enableSpeech: false,
    enableBraille: false,
    enableExplorer: false,
    enableAssistiveMml: true,
    menuOptions: { settings: { assistiveMml: true, speech: false, braille: false } },
  },
  startup: {
    // Else every formula would be a stop of the Tab key, hundreds in a chapter. Those on a line of
    // their own stay one: on a phone they may have to be pushed aside.
    pageReady: async () => {
      await MathJax.startup.defaultPageReady();
      const inText = 'mjx-container:not([display="true"])';
      for (const each of document.querySelectorAll(inText)) each.removeAttribute("tabindex");
    },
  },
};
