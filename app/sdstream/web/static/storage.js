/**
 * Values that the browser stores for this page. If the storage is blocked, the page works without
 * it and loses its values when it is closed or reloaded.
 */

const PREFIX = "sdstream.";

/**
 * @param {string} name
 * @returns {string | null}
 */
export function recall(name) {
  try {
    return sessionStorage.getItem(PREFIX + name) ?? localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

/**
 * @param {string} name
 * @param {string} value
 * @param {"session" | "local"} [where] "session": until the tab is closed; "local": until forget().
 */
export function keep(name, value, where = "local") {
  try {
    (where === "local" ? localStorage : sessionStorage).setItem(PREFIX + name, value);
  } catch {
    // The storage is blocked or full.
  }
}

/** @param {string} name */
export function forget(name) {
  try {
    sessionStorage.removeItem(PREFIX + name);
    localStorage.removeItem(PREFIX + name);
  } catch {
    // The storage is blocked.
  }
}

/**
 * @param {string} name
 * @returns {any} The value that keep() stored as JSON; null without a value or with a damaged one.
 */
export function recallJson(name) {
  try {
    return JSON.parse(recall(name) ?? "null");
  } catch {
    return null;
  }
}
