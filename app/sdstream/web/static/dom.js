/** Finds and creates elements. Data is inserted as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Find an element of the page.
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`The page has no ${kind.name} #${id}.`);
  return found;
}

/**
 * Create an element.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes] A function becomes the listener of the event with
 *   its name; null, undefined and false are left out.
 * @param {...(Node | string | null)} children
 * @returns {HTMLElement}
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      element.addEventListener(name, /** @type {EventListener} */ (value));
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/**
 * Create an icon from the page's sprite.
 * @param {string} name
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Focus the stage when the focused element disappears, so that the keyboard focus is not lost. */
export function focusStage() {
  byId("stage", HTMLElement).focus({ preventScroll: true });
}

/**
 * Read a file into memory. The file on the disk may change or disappear before the page sends it.
 * @param {File} file
 * @returns {Promise<File>} Rejected if the file cannot be read.
 */
export async function held(file) {
  try {
    return new File([await file.arrayBuffer()], file.name, { type: file.type });
  } catch {
    throw new Error(`The file ${file.name} cannot be read. Choose it again.`);
  }
}

/**
 * Download a file.
 * @param {File} file
 */
export function save(file) {
  const url = URL.createObjectURL(file);
  make("a", { href: url, download: file.name }).click();
  // Some browsers read the URL a little later.
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * Copy text to the clipboard. The Clipboard API exists on HTTPS and localhost only.
 * @param {string} text
 * @returns {Promise<boolean>}
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "unseen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
