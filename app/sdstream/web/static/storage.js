/**
 * What the browser keeps for this page. A browser that keeps nothing (private windows, blocked
 * storage) is no fault: everything works and is forgotten with the tab.
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
 * @param {"session" | "local"} [where] Until the tab is closed, or until it is forgotten.
 */
export function keep(name, value, where = "local") {
  try {
    (where === "local" ? localStorage : sessionStorage).setItem(PREFIX + name, value);
  } catch {
    // Kept by nobody.
  }
}

/** @param {string} name */
export function forget(name) {
  try {
    sessionStorage.removeItem(PREFIX + name);
    localStorage.removeItem(PREFIX + name);
  } catch {
    // Nothing was kept.
  }
}

/**
 * @param {string} name
 * @returns {any} What keep() was given as JSON; null when there is none or it is damaged.
 */
export function recallJson(name) {
  try {
    return JSON.parse(recall(name) ?? "null");
  } catch {
    return null;
  }
}
