/** The dialog for the API key. The key stays in this browser and is sent in a header only. */

import { api } from "./api.js";
import { byId } from "./dom.js";

/** A header, which carries the key, can hold no other characters. */
const NOT_ASCII =
  "This key has characters other than ASCII. Enter the key as its operator issued it.";

const dialog = byId("key-dialog", HTMLDialogElement);
const field = byId("key", HTMLInputElement);
const problem = byId("key-error", HTMLElement);
const remember = byId("key-remember", HTMLInputElement);
const forgetButton = byId("key-forget", HTMLButtonElement);

/** Resolve the promises of askForKey(). @type {((given: boolean) => void)[]} */
let answers = [];

/**
 * Show the dialog until the user enters a key that the server accepts.
 * @param {boolean} rejected True if the server rejected the current key.
 * @returns {Promise<boolean>} False if the user closed the dialog.
 */
export function askForKey(rejected) {
  tell(rejected ? "The server does not accept this key any more." : "");
  forgetButton.hidden = !api.hasKey;
  if (!dialog.open) {
    field.value = "";
    dialog.showModal();
  }
  field.focus();
  return new Promise((resolve) => {
    answers.push(resolve);
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
  if (/[^ -~]/.test(key)) return tell(NOT_ASCII);
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
  const waiting = answers;
  answers = [];
  dialog.close();
  for (const answer of waiting) answer(given);
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
dialog.addEventListener("close", () => answers.length && finish(false));
