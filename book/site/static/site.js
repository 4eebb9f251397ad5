// What the book's pages do beyond the theme: quizzes, folded things in print, pages from a folder.

// A quiz: each answer is a button, and says when it is chosen whether it is right, and why.
function startQuiz(quiz) {
  const score = quiz.querySelector(".quiz-score");
  const questions = [...quiz.querySelectorAll(".quiz-question")];
  const tell = () => {
    const done = questions.filter((question) => question.dataset.first);
    const right = done.filter((question) => question.dataset.first === "right").length;
    if (done.length === questions.length)
      score.textContent = `${right} of ${questions.length} right at the first try.`;
  };
  for (const question of questions) {
    const said = question.querySelector(".quiz-said");
    for (const button of question.querySelectorAll("button")) {
      button.addEventListener("click", () => {
        const feedback = button.nextElementSibling;
        feedback.hidden = false;
        button.setAttribute("aria-expanded", "true");
        button.classList.add(`chosen-${button.dataset.answer}`);
        // The words appear beside the button; a screen reader hears them from here.
        said.textContent = feedback.textContent;
        question.dataset.first ??= button.dataset.answer;
        tell();
      });
    }
  }
}

// Opened from a folder, a page may not read others, nor start a worker: search shows no excerpts,
// and the running model says what it needs.
function fromFolder() {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  for (const frame of document.querySelectorAll(".live iframe")) {
    const words = document.createElement("p");
    words.textContent =
      "The running model needs a server: in this site’s folder, run “python -m http.server 8000”, " +
      "and open http://localhost:8000 in the browser.";
    frame.replaceWith(words);
  }
}

// On paper nothing can be opened and everything is white: for the print, what a chapter folds is
// unfolded (but for code that only draws), and the page is light. Hints of exercises stay shut.
function readyForPaper() {
  const page = document.documentElement;
  const { theme } = page.dataset;
  const folded = location.pathname.includes("/exercises/")
    ? []
    : [...document.querySelectorAll("article details:not([open], .above-input)")];
  folded.forEach((each) => (each.open = true));
  page.dataset.theme = "light";
  const back = () => {
    folded.forEach((each) => (each.open = false));
    page.dataset.theme = theme;
  };
  window.addEventListener("afterprint", back, { once: true });
}

if (location.protocol === "file:") {
  // Before the search page asks for its first excerpt.
  if (window.DOCUMENTATION_OPTIONS) DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  document.addEventListener("DOMContentLoaded", fromFolder);
}
window.addEventListener("beforeprint", readyForPaper);
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".quiz").forEach(startQuiz);
});
