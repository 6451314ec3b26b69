/** Further images of a request: reference images and a control image. */

import { byId, held, icon, make } from "./dom.js";
import { tell } from "./header.js";

/** Maximum number of images that the server accepts with one request. */
const MOST = 8;

const referenceList = byId("references", HTMLElement);
const controlList = byId("control-list", HTMLElement);
const addReference = byId("add-reference", HTMLButtonElement);
const addControl = byId("add-control", HTMLButtonElement);

/** Fires "change" when the images change. */
export class ExtraImages extends EventTarget {
  /** @type {File[]} */
  references = [];
  /** @type {File | null} */
  control = null;

  constructor() {
    super();
    join(addReference, byId("reference-file", HTMLInputElement), (files) => {
      this.set([...this.references, ...files].slice(0, MOST), this.control);
    });
    join(addControl, byId("control-file", HTMLInputElement), ([file]) => {
      this.set(this.references, file);
    });
  }

  /**
   * @param {File[]} references
   * @param {File | null} control
   */
  set(references, control) {
    this.references = references;
    this.control = control;
    referenceList.replaceChildren(
      ...references.map((file, index) =>
        row(file, () => {
          this.set(this.references.toSpliced(index, 1), this.control);
          addReference.focus();
        }),
      ),
    );
    controlList.replaceChildren(
      ...(control ? [row(control, () => {
        this.set(this.references, null);
        addControl.focus();
      })] : []),
    );
    addReference.disabled = references.length >= MOST;
    addControl.textContent = control ? "Choose another…" : "Choose an image…";
    this.dispatchEvent(new Event("change"));
  }
}

/**
 * @param {File} file
 * @param {() => void} drop
 */
function row(file, drop) {
  const image = /** @type {HTMLImageElement} */ (make("img", { alt: "" }));
  const url = URL.createObjectURL(file);
  image.addEventListener("load", () => URL.revokeObjectURL(url));
  image.src = url;
  return make(
    "li",
    { class: "source" },
    image,
    make("p", {}, make("span", {}, file.name)),
    make("button", { type: "button", class: "icon", click: drop }, icon("close"),
      make("span", { class: "unseen" }, `Remove ${file.name}`)),
  );
}

/**
 * @param {HTMLButtonElement} button
 * @param {HTMLInputElement} field
 * @param {(files: File[]) => void} use
 */
function join(button, field, use) {
  button.addEventListener("click", () => field.click());
  field.addEventListener("change", async () => {
    const files = [...(field.files ?? [])];
    field.value = "";
    try {
      if (files.length) use(await Promise.all(files.map(held)));
    } catch (error) {
      tell(/** @type {Error} */ (error).message);
    }
  });
}
