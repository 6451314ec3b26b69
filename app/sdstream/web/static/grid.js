/** A grid of images: one job for each cell, which is filled when the job ends. */

import { showImage } from "./api.js";
import { byId, make } from "./dom.js";
import { counted, labelOf, progressLine, shortened } from "./format.js";
import { isOver } from "./jobs.js";
import { nameOf } from "./images.js";

/** @import {Job} from "./jobs.js" */
/** @import {Settings} from "./form.js" */

/** Columns of a grid that has one axis. */
export const ROW = 4;
const MOST_LETTERS = 80;

/** One axis: an option, or "word" of the prompt, and its values. @typedef {{name: string, values: string[]}} Axis */
/**
 * The axes and the jobs of a grid.
 * @typedef {object} Plan
 * @property {string} group Name of its jobs on the server.
 * @property {Settings} settings The settings that all cells share.
 * @property {Axis} across
 * @property {Axis | null} down
 * @property {(string | null)[]} ids Ids of the cells' jobs, row by row; null before the submission.
 * @property {boolean} [cancelled] True if no more jobs will be submitted.
 * @property {boolean} [sending] True while a request for a cell's job may be unanswered.
 */

const table = byId("grid-table", HTMLElement);
const line = byId("grid-status", HTMLElement);
const warnings = byId("grid-warnings", HTMLElement);
const cancel = byId("grid-cancel", HTMLButtonElement);
const sheet = byId("grid-sheet", HTMLButtonElement);

/** Fires "cancel", "sheet", and "open" with a Job as detail. */
export class Grid extends EventTarget {
  /** @type {Plan | null} */
  plan = null;
  /** @type {Map<string, Job>} */
  jobs = new Map();
  /** @type {HTMLElement[]} */
  #cells = [];

  constructor() {
    super();
    cancel.addEventListener("click", () => this.dispatchEvent(new Event("cancel")));
    sheet.addEventListener("click", () => this.dispatchEvent(new Event("sheet")));
  }

  /** @param {Plan} plan */
  show(plan) {
    this.plan = plan;
    this.jobs.clear();
    const { across, down } = plan;
    const columns = across.values.length;
    const heads = across.values.map((value) => make("th", { scope: "col" }, titleOf(across, value)));
    this.#cells = plan.ids.map(() => make("td"));
    table.style.setProperty("--columns", String(down ? columns : Math.min(columns, ROW)));
    if (down) {
      const rows = down.values.map((value, row) => {
        const cells = this.#cells.slice(row * columns, (row + 1) * columns);
        return make("tr", {}, make("th", { scope: "row" }, titleOf(down, value)), ...cells);
      });
      const head = make("tr", {}, make("td"), ...heads);
      table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    } else {
      // A single axis may have many values, so it is broken into rows.
      const bodies = [];
      for (let start = 0; start < columns; start += ROW) {
        const [titles, cells] = [heads, this.#cells].map((all) => all.slice(start, start + ROW));
        bodies.push(make("tbody", {}, make("tr", {}, ...titles), make("tr", {}, ...cells)));
      }
      table.replaceChildren(...bodies);
    }
    this.#cells.forEach((_, index) => this.#fill(index));
    this.#tell();
  }

  /**
   * Show a job that has changed, if it belongs to a cell.
   * @param {Job} job
   */
  update(job) {
    const index = this.plan?.ids.indexOf(job.id) ?? -1;
    if (index < 0) return;
    this.jobs.set(job.id, job);
    this.#fill(index);
    this.#tell();
  }

  /** Mark the grid as cancelled: cells without a job will get none. */
  cancelled() {
    if (!this.plan) return;
    this.plan.cancelled = true;
    this.#cells.forEach((_, index) => this.#fill(index));
    this.#tell();
  }

  /**
   * Mark a grid as sent: every request for one of its jobs was answered.
   * @param {Plan} plan
   */
  sent(plan) {
    delete plan.sending;
    this.#tell();
  }

  /** True if the jobs of all cells have ended. */
  get over() {
    const { plan } = this;
    if (!plan || (plan.cancelled && plan.sending)) return false;
    return plan.ids.every((id) =>
      id ? isOver(this.jobs.get(id) ?? /** @type {any} */ ({})) : Boolean(plan.cancelled),
    );
  }

  /** Number of images in all cells. */
  get #images() {
    return [...this.jobs.values()].reduce((sum, job) => sum + job.images.length, 0);
  }

  /** @param {number} index */
  #fill(index) {
    const id = this.plan?.ids[index];
    const job = id ? this.jobs.get(id) : undefined;
    const cell = this.#cells[index];
    const image = job?.images[0];
    if (!job || !image) {
      const failed = job?.status === "failed" ? (job.error?.message ?? "") : "";
      const text = failed || (job ? progressLine(job) : this.plan?.cancelled ? "Cancelled" : "Waiting");
      cell.replaceChildren(make("span", { class: failed ? "error" : "" }, text));
      return;
    }
    if (cell.dataset.job === id) return;
    cell.dataset.job = id ?? "";
    const large = /** @type {HTMLImageElement} */ (
      make("img", { alt: nameOf(job), width: image.width, height: image.height })
    );
    showImage(large, image.url);
    const open = () => this.dispatchEvent(new CustomEvent("open", { detail: this.jobs.get(job.id) }));
    cell.replaceChildren(make("button", { type: "button", click: open }, large));
  }

  #tell() {
    const { plan } = this;
    if (!plan) return;
    const ended = [...this.jobs.values()].filter(isOver).length;
    const { seed } = plan.settings;
    const all = `${counted(this.#images, "image")}, ${seed ? `seed ${seed}` : "random seeds"}`;
    const over = plan.cancelled ? `Cancelled; ${all}` : all;
    line.textContent = this.over ? over : `${ended} of ${plan.ids.length} finished`;
    cancel.hidden = this.over;
    sheet.hidden = ended === 0;
    this.#warn();
  }

  /** Show the warnings of all cells, each once. */
  #warn() {
    const texts = new Set([...this.jobs.values()].flatMap((job) => job.warnings));
    warnings.replaceChildren(...[...texts].map((text) => make("li", {}, text)));
  }
}

/**
 * @param {Axis} axis
 * @param {string} value
 */
export function titleOf(axis, value) {
  const words = axis.name === "word" || axis.name === "prompt";
  return words ? shortened(value, MOST_LETTERS) : `${labelOf(axis.name)} ${value}`;
}
