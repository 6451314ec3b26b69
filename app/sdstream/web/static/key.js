/** The dialog for the API key. The key stays in this browser and is sent in a header only. */

import { api } from "./api.js";
import { byId } from "./dom.js";

const dialog = byId("key-dialog", HTMLDialogElement);
const field = byId("key", HTMLInputElement);
const problem = byId("key-error", HTMLElement);
const remember = byId("key-remember", HTMLInputElement);
const forgetButton = byId("key-forget", HTMLButtonElement);

/** @type {((given: boolean) => void) | null} */
let answer = null;

/**
 * Show the dialog until the user enters a key that the server accepts.
 * @param {boolean} rejected True if the server rejected the current key.
 * @returns {Promise<boolean>} False if the user closed the dialog.
 */
export function askForKey(rejected) {
  field.value = "";
  tell(rejected ? "The server does not accept this key any more." : "");
  forgetButton.hidden = !api.hasKey;
  if (!dialog.open) dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    answer = resolve;
  });
}

/** @param {string} text */
function tell(text) {
  problem.textContent = text;
  field.setAttribute("aria-invalid", String(text !== ""));
}

async function tryKey() {
  const key = field.value.trim();
  if (!key) return tell("Enter the key.");
  try {
    if (!(await api.accepts(key))) return tell("The server does not accept this key.");
  } catch (error) {
    return tell(/** @type {Error} */ (error).message);
  }
  api.setKey(key, remember.checked);
  finish(true);
}

/** @param {boolean} given */
function finish(given) {
  const waiting = answer;
  answer = null;
  dialog.close();
  waiting?.(given);
}

byId("key-form", HTMLFormElement).addEventListener("submit", (event) => {
  event.preventDefault();
  tryKey();
});
byId("key-cancel", HTMLButtonElement).addEventListener("click", () => finish(false));
forgetButton.addEventListener("click", () => {
  api.setKey(null);
  finish(false);
});
// The Escape key closes the dialog without a click on a button.
dialog.addEventListener("close", () => answer && finish(false));
