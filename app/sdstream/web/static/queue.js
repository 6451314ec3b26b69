/** The queue: unfinished jobs, without the one on the stage. */

import { showImage } from "./api.js";
import { byId, focusStage, icon, make } from "./dom.js";
import { progressLine, shortened } from "./format.js";

/** @import {Job} from "./jobs.js" */

/** Fires "open" and "cancel" with a Job as detail, and "cancelall" with all Jobs shown. */
export class Queue extends EventTarget {
  #section = byId("queue", HTMLElement);
  #list = byId("queue-list", HTMLElement);
  #cancel = byId("queue-cancel", HTMLButtonElement);
  /** @type {Map<string, QueueRow>} */
  #rows = new Map();
  /** @type {Job[]} */
  #jobs = [];

  constructor() {
    super();
    this.#cancel.addEventListener("click", () => {
      this.dispatchEvent(new CustomEvent("cancelall", { detail: this.#jobs }));
    });
  }

  /** @param {Job[]} jobs In the order of submission. */
  show(jobs) {
    this.#jobs = jobs;
    if (jobs.length === 0 && this.#section.contains(document.activeElement)) focusStage();
    this.#section.hidden = jobs.length === 0;
    byId("queue-title", HTMLElement).textContent = `Queue (${jobs.length})`;
    if (jobs.length < 2 && document.activeElement === this.#cancel) focusStage();
    this.#cancel.hidden = jobs.length < 2;
    const ids = new Set(jobs.map((job) => job.id));
    for (const [id, row] of this.#rows) {
      if (!ids.has(id)) {
        if (row.element.contains(document.activeElement)) focusStage();
        row.element.remove();
        this.#rows.delete(id);
      }
    }
    jobs.forEach((job, place) => {
      const row = this.#rows.get(job.id) ?? this.#newRow(job);
      row.update(job);
      // An element that is moved loses the focus.
      if (this.#list.children[place] !== row.element) {
        this.#list.insertBefore(row.element, this.#list.children[place] ?? null);
      }
    });
  }

  /** @param {Job} job */
  #newRow(job) {
    const fire = (/** @type {string} */ name) =>
      this.dispatchEvent(new CustomEvent(name, { detail: job }));
    const row = new QueueRow(
      () => fire("open"),
      () => fire("cancel"),
    );
    this.#rows.set(job.id, row);
    return row;
  }
}

class QueueRow {
  #thumb = /** @type {HTMLImageElement} */ (make("img", { alt: "", hidden: true }));
  #title = make("span");
  #state = make("small");
  #bar = /** @type {HTMLProgressElement} */ (make("progress", { max: 100, "aria-hidden": "true" }));
  #cancelLabel = make("span", { class: "unseen" });

  /**
   * @param {() => void} open
   * @param {() => void} cancelIt
   */
  constructor(open, cancelIt) {
    const text = make("span", { class: "row-text" }, this.#title, this.#state);
    this.element = make(
      "li",
      {},
      make("button", { type: "button", class: "row", click: open }, this.#thumb, text),
      make("button", { type: "button", class: "icon", click: cancelIt }, icon("close"), this.#cancelLabel),
      this.#bar,
    );
  }

  /** @param {Job} job */
  update(job) {
    this.#title.textContent = shortened(job.parameters.prompt, 80) || "(no prompt)";
    this.#state.textContent = progressLine(job);
    this.#cancelLabel.textContent = `Cancel: ${this.#title.textContent}`;
    this.#bar.hidden = job.status === "queued";
    this.#bar.value = job.progress;
    const source = job.preview?.url ?? job.images.at(-1)?.url;
    this.#thumb.hidden = !source;
    if (source) showImage(this.#thumb, source);
  }
}
