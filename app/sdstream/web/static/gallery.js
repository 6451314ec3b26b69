/** Past pictures of the server's store. */

import { api, ApiError, showPicture } from "./api.js";
import { byId, make } from "./dom.js";
import { nameOf } from "./pictures.js";
import { shortened } from "./format.js";

/** @import {Job, JobImage} from "./jobs.js" */

/** A picture, or a job that came to none. @typedef {{job: Job, image: JobImage | null}} Entry */

const PAGE = 24;
const ENDED = "completed,failed,cancelled";

const tiles = byId("tiles", HTMLElement);
const more = byId("gallery-more", HTMLButtonElement);
const empty = byId("gallery-empty", HTMLElement);
const problem = byId("gallery-error", HTMLElement);

/** Fires "open" with an Entry as detail. */
export class Gallery extends EventTarget {
  /** Newest first. @type {Entry[]} */
  entries = [];
  #last = "";

  constructor() {
    super();
    more.addEventListener("click", () => this.#loadMore());
  }

  /** Get the newest anew. */
  async load() {
    this.entries = [];
    this.#last = "";
    tiles.replaceChildren();
    await this.#loadMore();
  }

  /**
   * Put a job that has just ended in front.
   * @param {Job} job
   */
  add(job) {
    if (this.entries.some((entry) => entry.job.id === job.id)) return;
    const fresh = entriesOf(job);
    this.entries.unshift(...fresh);
    tiles.prepend(...fresh.map((entry) => this.#tile(entry)));
    empty.hidden = this.entries.length > 0;
  }

  /** @param {string} id */
  remove(id) {
    this.entries = this.entries.filter((entry) => entry.job.id !== id);
    for (const tile of tiles.querySelectorAll(`[data-job="${CSS.escape(id)}"]`)) tile.remove();
    empty.hidden = this.entries.length > 0;
  }

  /**
   * Give a tile the focus, or the last one there is.
   * @param {number} place
   */
  focus(place) {
    const buttons = tiles.querySelectorAll("button");
    buttons[Math.min(place, buttons.length - 1)]?.focus();
  }

  async #loadMore() {
    problem.textContent = "";
    more.disabled = true;
    try {
      const after = this.#last ? `&after=${this.#last}` : "";
      const page = await api.get(`v1/jobs?status=${ENDED}&limit=${PAGE}${after}`);
      this.#last = page.last_id ?? this.#last;
      more.hidden = !page.has_more;
      for (const job of page.data) this.#append(job);
      empty.hidden = this.entries.length > 0;
    } catch (error) {
      // A page that begins after a job which is gone by now.
      if (error instanceof ApiError && error.status === 404 && this.#last) return this.load();
      problem.textContent = `The gallery could not be read. ${/** @type {Error} */ (error).message}`;
      more.hidden = false;
    } finally {
      more.disabled = false;
    }
  }

  /** @param {Job} job */
  #append(job) {
    if (this.entries.some((entry) => entry.job.id === job.id)) return;
    const entries = entriesOf(job);
    this.entries.push(...entries);
    tiles.append(...entries.map((entry) => this.#tile(entry)));
  }

  /** @param {Entry} entry */
  #tile(entry) {
    const { job, image } = entry;
    const open = () => this.dispatchEvent(new CustomEvent("open", { detail: entry }));
    const button = make("button", { type: "button", click: open, title: shortened(nameOf(job), 120) });
    if (image) {
      const { width, height } = image;
      const thumb = /** @type {HTMLImageElement} */ (
        make("img", { alt: nameOf(job), loading: "lazy", width, height })
      );
      showPicture(thumb, image.url, () => button.replaceChildren(make("span", {}, "no longer there")));
      button.append(thumb);
    } else {
      button.append(make("span", {}, "Failed"), make("small", {}, shortened(nameOf(job), 60)));
    }
    return make("li", { "data-job": job.id }, button);
  }
}

/**
 * @param {Job} job
 * @returns {Entry[]}
 */
function entriesOf(job) {
  if (job.images.length) return job.images.map((image) => ({ job, image }));
  return job.status === "failed" ? [{ job, image: null }] : [];
}
