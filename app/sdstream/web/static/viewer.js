/** The viewer: shows one large image with its settings. */

import { showImage } from "./api.js";
import { byId, make } from "./dom.js";
import { nameOf, wasGenerated } from "./images.js";
import { counted, facts } from "./format.js";

/** @import {Entry, Gallery} from "./gallery.js" */

const dialog = byId("viewer", HTMLDialogElement);
const large = byId("viewer-image", HTMLImageElement);
const gone = byId("viewer-gone", HTMLElement);
const prompt = byId("viewer-prompt", HTMLElement);
const previous = byId("viewer-previous", HTMLButtonElement);
const next = byId("viewer-next", HTMLButtonElement);
const sure = byId("viewer-sure", HTMLElement);
const viewerError = byId("viewer-error", HTMLElement);
const deleteButton = byId("viewer-delete", HTMLButtonElement);

/** Fires "reuse", "edit", "favorite", "upscale" and "download" with an Entry as detail. */
export class Viewer extends EventTarget {
  /** @type {Entry | null} */
  #entry = null;
  /** True if the server has an upscaler. */
  canUpscale = false;
  #gallery;
  #remove;

  /**
   * @param {Gallery} gallery Has the images that the viewer pages through.
   * @param {(id: string) => Promise<void>} remove Deletes a job.
   */
  constructor(gallery, remove) {
    super();
    this.#gallery = gallery;
    this.#remove = remove;
    previous.addEventListener("click", () => this.#turn(-1));
    next.addEventListener("click", () => this.#turn(1));
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft") this.#turn(-1);
      if (event.key === "ArrowRight") this.#turn(1);
      if (event.key === "Delete") this.#ask();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    on("viewer-close", () => dialog.close());
    on("viewer-reuse", () => this.#leave("reuse"));
    on("viewer-edit", () => this.#leave("edit"));
    on("viewer-download", () => this.#fire("download"));
    on("viewer-upscale", () => this.#leave("upscale"));
    on("viewer-favorite", () => this.#fire("favorite"));
    on("viewer-delete", () => this.#ask());
    on("viewer-keep", () => this.#unask());
    on("viewer-delete-now", () => this.#delete());
  }

  /** @param {Entry} entry */
  open(entry) {
    this.#entry = entry;
    this.#show(entry);
    if (!dialog.open) dialog.showModal();
    // A long prompt can get the focus, so that the arrow keys scroll it.
    prompt.tabIndex = prompt.scrollHeight > prompt.clientHeight ? 0 : -1;
  }

  close() {
    dialog.close();
  }

  /** @param {Entry} entry */
  #show({ job, image }) {
    sure.hidden = true;
    viewerError.textContent = "";
    large.hidden = !image;
    gone.textContent = image ? "" : `The image could not be generated. ${job.error?.message ?? ""}`;
    if (image) {
      large.alt = nameOf(job);
      large.width = image.width;
      large.height = image.height;
      large.style.setProperty("--ratio", String(image.width / image.height));
      showImage(large, image.url, () => {
        large.hidden = true;
        gone.textContent = "This image was deleted or has expired.";
      });
    }
    dialog.setAttribute("aria-label", nameOf(job));
    prompt.textContent = job.parameters.prompt.trim() || nameOf(job);
    prompt.scrollTop = 0;
    byId("viewer-warnings", HTMLElement).replaceChildren(
      ...job.warnings.map((text) => make("li", {}, text)),
    );
    const pairs = facts(job, image);
    pairs.push(["Created", dateAndTime(job.created)]);
    byId("viewer-facts", HTMLElement).replaceChildren(
      ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
    );
    for (const id of ["viewer-edit", "viewer-download"]) byId(id, HTMLElement).hidden = !image;
    byId("viewer-upscale", HTMLElement).hidden = !image || !this.canUpscale;
    byId("viewer-reuse", HTMLElement).hidden = !wasGenerated(job);
    this.showMark();
    const place = this.#place();
    this.#gallery.near(place);
    previous.disabled = place <= 0;
    next.disabled = place < 0 || place >= this.#gallery.entries.length - 1;
  }

  /** @param {string} text */
  showError(text) {
    viewerError.textContent = text;
  }

  /** Show whether the job is a favorite. */
  showMark() {
    byId("viewer-favorite", HTMLElement).setAttribute(
      "aria-pressed",
      String(this.#entry?.job.favorite ?? false),
    );
  }

  #place() {
    const { job, image } = /** @type {Entry} */ (this.#entry);
    return this.#gallery.entries.findIndex(
      (entry) => entry.job.id === job.id && entry.image?.index === image?.index,
    );
  }

  /** @param {number} way */
  #turn(way) {
    const place = this.#place();
    const entry = place < 0 ? undefined : this.#gallery.entries[place + way];
    if (entry) this.open(entry);
  }

  /** @param {string} name */
  #leave(name) {
    dialog.close();
    this.#fire(name);
  }

  /** @param {string} name */
  #fire(name) {
    this.dispatchEvent(new CustomEvent(name, { detail: this.#entry }));
  }

  #ask() {
    const count = this.#entry?.job.images.length ?? 0;
    byId("viewer-question", HTMLElement).textContent =
      count > 1 ? `Delete all ${counted(count, "image")} of this job for good?` : "Delete this image for good?";
    sure.hidden = false;
    byId("viewer-keep", HTMLButtonElement).focus();
  }

  #unask() {
    sure.hidden = true;
    deleteButton.focus();
  }

  async #delete() {
    const entry = /** @type {Entry} */ (this.#entry);
    try {
      const place = this.#place();
      await this.#remove(entry.job.id);
      dialog.close();
      this.#gallery.focus(place);
    } catch (error) {
      sure.hidden = true;
      viewerError.textContent = `The image was not deleted. ${/** @type {Error} */ (error).message}`;
    }
  }
}

/** @param {number} seconds Unix time. */
function dateAndTime(seconds) {
  const options = /** @type {const} */ ({ dateStyle: "medium", timeStyle: "short" });
  return new Date(seconds * 1000).toLocaleString([], options);
}

/**
 * @param {string} id
 * @param {() => void} act
 */
function on(id, act) {
  byId(id, HTMLButtonElement).addEventListener("click", act);
}
