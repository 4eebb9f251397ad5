// The list of lessons, and the one that is being read.

import { $ } from "./controls.js";
import { LESSONS, chapterLink } from "./lessons.js";
import { toLink } from "./state.js";

/** Fill the list. `follow(number)` is called for the one that is chosen, counted from 1. Returned
 *  is a function that shows one as chosen, or with null none. */
export function connectLessons(follow) {
  const links = LESSONS.map((_, i) => aim(document.createElement("a"), i + 1));
  for (const link of links) {
    const item = document.createElement("li");
    item.append(link);
    $("lessons").append(item);
  }
  links.forEach((link, i) => link.addEventListener("click", (event) => choose(event, i + 1)));
  let now = null;
  $("lesson-next").addEventListener("click", (event) => choose(event, now + 1));

  function choose(event, number) {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // It opens in another tab.
    event.preventDefault();
    show(number);
    follow(number);
  }

  function show(number) {
    now = number;
    for (const link of links) link.removeAttribute("aria-current");
    $("lesson").hidden = !number;
    if (!number) return;
    const link = links[number - 1];
    link.setAttribute("aria-current", "true");
    $("lessons").scrollLeft = link.offsetLeft - $("lessons").offsetLeft - 40; // On a phone: one line.
    const { title, text, chapter } = LESSONS[number - 1];
    const name = document.createElement("strong");
    name.textContent = `${number} · ${title}`;
    $("lesson-text").replaceChildren(name, ` ${text} `, chapterLink(chapter));
    const next = LESSONS[number];
    $("lesson-next").hidden = !next;
    if (next) aim($("lesson-next"), number + 1).textContent = `Next: ${next.title}`;
  }

  return show;
}

/** Give a link the address of a lesson, and its title. */
function aim(link, number) {
  const { state, title } = LESSONS[number - 1];
  link.href = toLink(state, { lesson: number });
  link.textContent = title;
  return link;
}
