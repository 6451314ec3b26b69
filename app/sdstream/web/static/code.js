/** The panel that shows the current settings as code. */

import { say } from "./announce.js";
import { byId, copy } from "./dom.js";
import { SNIPPETS } from "./snippets.js";
import { keep, recall, recallJson } from "./storage.js";

/** @import {Facts} from "./snippets.js" */

const COPIED_MS = 2_000;

const panel = byId("code", HTMLDetailsElement);
const snippet = byId("snippet", HTMLElement);
const text = byId("snippet-text", HTMLElement);
const saveMask = byId("save-mask", HTMLButtonElement);
const copyButton = byId("copy", HTMLButtonElement);
const languages = Object.keys(SNIPPETS);

/** Fires "save" when the user wants the mask as a file. */
export class CodePanel extends EventTarget {
  #language = languages.find((name) => name === recall("language")) ?? languages[0];
  /** @type {Facts | null} */
  #facts = null;

  constructor() {
    super();
    panel.open = recallJson("code") ?? false;
    panel.addEventListener("toggle", () => keep("code", JSON.stringify(panel.open)));
    for (const language of languages) {
      tabOf(language).addEventListener("click", () => this.#choose(language));
      tabOf(language).addEventListener("keydown", (event) => this.#turn(event));
    }
    copyButton.addEventListener("click", copyText);
    saveMask.addEventListener("click", () => this.dispatchEvent(new Event("save")));
  }

  /** @param {Facts} facts */
  show(facts) {
    this.#facts = facts;
    for (const language of languages) {
      const chosen = language === this.#language;
      tabOf(language).setAttribute("aria-selected", String(chosen));
      tabOf(language).tabIndex = chosen ? 0 : -1;
    }
    snippet.setAttribute("aria-labelledby", tabOf(this.#language).id);
    text.textContent = SNIPPETS[this.#language](facts);
    saveMask.hidden = !facts.mask;
  }

  /** @param {string} language */
  #choose(language) {
    this.#language = language;
    keep("language", language);
    if (this.#facts) this.show(this.#facts);
  }

  /** @param {KeyboardEvent} event */
  #turn(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    const place = languages.indexOf(this.#language) + way + languages.length;
    this.#choose(languages[place % languages.length]);
    tabOf(this.#language).focus();
  }
}

/** @param {string} language */
function tabOf(language) {
  return byId(`tab-${language}`, HTMLButtonElement);
}

async function copyText() {
  const done = await copy(text.textContent ?? "");
  copyButton.textContent = done ? "Copied" : "Not copied";
  say(copyButton.textContent);
  setTimeout(() => {
    copyButton.textContent = "Copy";
  }, COPIED_MS);
}
