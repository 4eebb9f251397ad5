// "Say what you expect": a question before a change is drawn, and both pictures after it.

import { QUESTIONS, chapterLink } from "./lessons.js";

/** "guidance 2 → guidance 15" */
export const inWords = (changes) =>
  changes.map(({ before, now }) => `${short(before)} → ${short(now)}`).join(" · ");

const short = (text) => (text.length > 90 ? `${text.slice(0, 90).replace(/ \S*$/, "")} …` : text);

/**
 * Ask in `section` what the changes will do. Resolves to {question, expected}; to null if the
 * reader would rather see at once, or asks no more by another drawing.
 */
export function ask(section, changes) {
  const question = QUESTIONS[changes[0].key];
  section.replaceChildren();
  section.hidden = false;
  const title = element("h2", "What do you expect?");
  title.id = "expect-title";
  const choices = element("fieldset");
  choices.append(element("legend", question.ask));
  question.choices.forEach((choice, i) => {
    const label = element("label");
    const radio = element("input");
    Object.assign(radio, { type: "radio", name: "expected", value: choice, id: `expected-${i}` });
    label.append(radio, ` ${choice}`);
    choices.append(label);
  });
  const own = Object.assign(element("input"), { type: "text", id: "expected-own", maxLength: 300 });
  const ownLabel = element("label", "Or in your own words");
  ownLabel.htmlFor = own.id;
  const draw = button("Draw and compare", "primary");
  const skip = button("Draw without saying");
  const row = element("p");
  row.className = "row";
  row.append(draw, skip);
  section.append(title, element("p", inWords(changes)));
  section.append(choices, ownLabel, own, row);
  section.focus();

  return new Promise((resolve) => {
    const end = (answer) => {
      section.hidden = true;
      forget = () => {};
      resolve(answer);
    };
    const expected = () =>
      [section.querySelector("input:checked")?.value, own.value.trim()].filter(Boolean).join("; ");
    draw.addEventListener("click", () => {
      if (expected()) end({ question, expected: expected() });
      else choices.querySelector("input").focus(); // Nothing was said yet.
    });
    skip.addEventListener("click", () => end(null));
    own.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // It would be the form's Draw.
      draw.click();
    });
    forget();
    forget = () => end(undefined);
  });
}

let forget = () => {};

/** Take an open question back: its promise resolves to undefined, and nothing is drawn for it. */
export function takeBack() {
  forget();
}

/** Show in a list what was expected, and what the book says. */
export function showSaid(list, answer) {
  list.hidden = !answer;
  if (!answer) return;
  const says = element("dd", `${answer.question.says} `);
  says.append(chapterLink(answer.question.chapter));
  list.replaceChildren(
    element("dt", "You expected"),
    element("dd", answer.expected),
    element("dt", "The book says"),
    says,
  );
}

function element(name, text = "") {
  return Object.assign(document.createElement(name), { textContent: text });
}

function button(name, kind = "") {
  return Object.assign(element("button", name), { type: "button", className: kind });
}
