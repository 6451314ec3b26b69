/** Accepts images that the user drops onto the page or pastes. */

import { byId } from "./dom.js";

const overlay = byId("drop", HTMLElement);
const edit = byId("drop-edit", HTMLElement);
const read = byId("drop-read", HTMLElement);

/**
 * @param {{edit: (file: File) => void, read: (file: File) => void}} on
 *   `edit` starts to edit the file; `read` reads the settings in it.
 */
export function acceptFiles(on) {
  let depth = 0; // number of nested elements under the pointer
  const show = (/** @type {boolean} */ shown) => {
    overlay.hidden = !shown;
    if (!shown) depth = 0;
  };
  addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    depth += 1;
    show(true);
  });
  addEventListener("dragleave", (event) => {
    if (carriesFiles(event) && (depth -= 1) <= 0) show(false);
  });
  addEventListener("dragover", (event) => {
    if (carriesFiles(event)) event.preventDefault();
    const over = /** @type {Element} */ (event.target).closest(".target");
    for (const target of [edit, read]) target.classList.toggle("over", target === over);
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    show(false);
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    if (read.contains(/** @type {Node} */ (event.target))) on.read(file);
    else on.edit(file);
  });
  addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (!file?.type.startsWith("image/")) return;
    event.preventDefault();
    on.edit(file);
  });
}

/** @param {DragEvent} event */
function carriesFiles(event) {
  return event.dataTransfer?.types.includes("Files") ?? false;
}
