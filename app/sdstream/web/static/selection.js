/** Downloads, marks and deletes the selected images of the gallery. */

import { byId, save } from "./dom.js";
import { counted } from "./format.js";
import { fileOf } from "./images.js";
import { zip } from "./zip.js";

/** @import {Entry, Gallery} from "./gallery.js" */
/** @import {Jobs} from "./jobs.js" */

/** Maximum number of downloads at once; a browser opens only six connections to a server. */
const AT_ONCE = 4;

const TOUCH = matchMedia("(pointer: coarse)");

const toggle = byId("select", HTMLButtonElement);
const bar = byId("selection", HTMLElement);
const line = byId("selection-count", HTMLElement);
const sure = byId("selection-sure", HTMLElement);
const question = byId("selection-question", HTMLElement);
const problem = byId("selection-error", HTMLElement);
const acts = ["selection-download", "selection-favorite", "selection-delete"];

export class Selection {
  #gallery;
  #jobs;
  /** The entries to delete once the user confirms. @type {Entry[]} */
  #doomed = [];

  /**
   * @param {Gallery} gallery
   * @param {Jobs} jobs
   */
  constructor(gallery, jobs) {
    this.#gallery = gallery;
    this.#jobs = jobs;
    toggle.addEventListener("click", () => {
      gallery.selecting = !gallery.selecting;
    });
    gallery.addEventListener("select", () => this.#show());
    gallery.addEventListener("delete", (event) => {
      this.#ask(/** @type {CustomEvent} */ (event).detail);
    });
    on("selection-all", () => gallery.selectAll());
    on("selection-download", () => this.#try(() => this.#download(), "downloaded"));
    on("selection-favorite", () => this.#try(() => this.#mark(), "marked"));
    on("selection-delete", () => this.#ask(gallery.selected));
    on("selection-keep", () => this.#unask());
    on("selection-delete-now", () => this.#try(() => this.#delete(), "deleted"));
  }

  #show() {
    const { selecting, selected } = this.#gallery;
    toggle.setAttribute("aria-pressed", String(selecting));
    toggle.textContent = selecting ? "Done" : "Select";
    bar.hidden = !selecting;
    line.textContent = selected.length ? `${counted(selected.length, "image")} selected` : TOUCH.matches ? "Tap images." : "Click images; Shift selects a range.";
    for (const id of acts) byId(id, HTMLButtonElement).disabled = selected.length === 0;
    const marked = selected.length > 0 && selected.every(({ job }) => job.favorite);
    byId("selection-favorite", HTMLElement).textContent = marked ? "Not favorites" : "Favorites";
    sure.hidden = true;
    problem.textContent = "";
  }

  /** @param {Entry[]} entries */
  #ask(entries) {
    this.#doomed = entries;
    // A job is deleted with all of its images.
    const all = jobsOf(entries).reduce((sum, job) => sum + Math.max(1, job.images.length), 0);
    question.textContent = `Delete ${counted(all, "image")} for good?`;
    sure.hidden = false;
    byId("selection-keep", HTMLButtonElement).focus();
  }

  #unask() {
    sure.hidden = true;
    this.#gallery.focus(this.#place());
  }

  #place() {
    return Math.max(0, this.#gallery.entries.indexOf(this.#doomed[0]));
  }

  async #delete() {
    const place = this.#place();
    await this.#jobs.removeAll(jobsOf(this.#doomed).map((job) => job.id));
    sure.hidden = true;
    this.#gallery.selecting = false;
    this.#gallery.focus(place);
  }

  async #mark() {
    const chosen = jobsOf(this.#gallery.selected);
    const favorite = !chosen.every((job) => job.favorite);
    for (const job of chosen) await this.#jobs.mark(job, favorite);
    this.#show();
  }

  async #download() {
    const wanted = this.#gallery.selected.filter((entry) => entry.image);
    /** @type {File[]} */
    const files = [];
    const work = async (/** @type {number} */ start) => {
      for (let at = start; at < wanted.length; at += AT_ONCE) {
        const { job, image } = wanted[at];
        if (image) files[at] = await fileOf(job, image);
        line.textContent = `${files.filter(Boolean).length} of ${wanted.length} downloaded`;
      }
    };
    await Promise.all([...Array(AT_ONCE).keys()].map(work));
    save(files.length === 1 ? files[0] : await zip(files, "images.zip"));
    this.#show();
  }

  /**
   * @param {() => Promise<void>} act
   * @param {string} done Participle for the error message, such as "deleted".
   */
  async #try(act, done) {
    problem.textContent = "";
    try {
      await act();
    } catch (error) {
      problem.textContent = `Not all images were ${done}. ${/** @type {Error} */ (error).message}`;
    }
  }
}

/** @param {Entry[]} entries */
function jobsOf(entries) {
  return [...new Map(entries.map(({ job }) => [job.id, job])).values()];
}

/**
 * @param {string} id
 * @param {() => void} act
 */
function on(id, act) {
  byId(id, HTMLButtonElement).addEventListener("click", act);
}
