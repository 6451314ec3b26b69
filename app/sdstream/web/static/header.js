/** The header of the page: notices, the API key, and the theme. */

import { api } from "./api.js";
import { byId } from "./dom.js";
import { askForKey } from "./key.js";
import { keep } from "./storage.js";

const THEMES = ["system", "light", "dark"];
const READING_MS = 6_000;

const root = document.documentElement;
const notice = byId("notice", HTMLElement);
const keyButton = byId("open-key", HTMLButtonElement);
const themeButton = byId("theme", HTMLButtonElement);

/** @type {ReturnType<typeof setTimeout> | undefined} */
let fading;

/**
 * Show a notice for a few seconds.
 * @param {string} text
 */
export function tell(text) {
  clearTimeout(fading);
  notice.classList.remove("trouble");
  notice.textContent = text;
  fading = setTimeout(showTrouble, READING_MS);
}

/** Show the problem that keeps the page from working, if there is one. */
function showTrouble() {
  clearTimeout(fading);
  const text = trouble();
  notice.classList.toggle("trouble", text !== "");
  notice.textContent = text;
}

function trouble() {
  if (!api.reachable) return "The server does not respond. Retrying…";
  return api.locked ? "This server requires an API key." : "";
}

/** @param {string} theme */
function showTheme(theme) {
  root.dataset.theme = theme;
  themeButton.title = `Theme: ${theme}`;
  byId("theme-label", HTMLElement).textContent = `Theme: ${theme}`;
  byId("theme-icon", SVGUseElement).setAttribute("href", `#i-theme-${theme}`);
}

themeButton.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "") + 1) % THEMES.length];
  keep("theme", next);
  showTheme(next);
});
showTheme(root.dataset.theme ?? THEMES[0]);

api.askForKey = askForKey;
api.addEventListener("connection", showTrouble);
for (const news of ["key", "locked"]) {
  api.addEventListener(news, () => {
    keyButton.hidden = !api.hasKey && !api.locked;
    showTrouble();
  });
}
keyButton.hidden = !api.hasKey;
keyButton.addEventListener("click", () => askForKey(false));
