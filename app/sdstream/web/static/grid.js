/** A grid that compares settings: one job for each cell, filled as they end. */

import { showImage } from "./api.js";
import { byId, make } from "./dom.js";
import { counted, labelOf, progressLine } from "./format.js";
import { isOver } from "./jobs.js";
import { nameOf } from "./images.js";

/** @import {Job} from "./jobs.js" */
/** @import {Settings} from "./form.js" */

/** One axis: an option, or "word" of the prompt, and its values. @typedef {{name: string, values: string[]}} Axis */
/**
 * What a grid is made of.
 * @typedef {object} Plan
 * @property {string} group Name of its jobs on the server.
 * @property {Settings} settings What all cells share.
 * @property {Axis} across
 * @property {Axis | null} down
 * @property {(string | null)[]} ids Jobs of the cells, row by row; null for those to come.
 * @property {boolean} [cancelled] No more jobs come.
 */

const table = byId("grid-table", HTMLElement);
const line = byId("grid-status", HTMLElement);
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
    const head = make(
      "tr",
      {},
      ...(down ? [make("td")] : []),
      ...across.values.map((value) => make("th", { scope: "col" }, titleOf(across, value))),
    );
    this.#cells = plan.ids.map(() => make("td"));
    const rows = (down?.values ?? [""]).map((value, row) =>
      make(
        "tr",
        {},
        ...(down ? [make("th", { scope: "row" }, titleOf(down, value))] : []),
        ...this.#cells.slice(row * across.values.length, (row + 1) * across.values.length),
      ),
    );
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
    this.#cells.forEach((_, index) => this.#fill(index));
    this.#tell();
  }

  /**
   * A job has changed; it may be a cell's.
   * @param {Job} job
   */
  update(job) {
    const index = this.plan?.ids.indexOf(job.id) ?? -1;
    if (index < 0) return;
    this.jobs.set(job.id, job);
    this.#fill(index);
    this.#tell();
  }

  /** No more jobs come: the cells without one stay empty. */
  cancelled() {
    if (!this.plan) return;
    this.plan.cancelled = true;
    this.#cells.forEach((_, index) => this.#fill(index));
    this.#tell();
  }

  /** All cells have ended. */
  get over() {
    const { plan } = this;
    if (!plan) return false;
    return plan.ids.every((id) =>
      id ? isOver(this.jobs.get(id) ?? /** @type {any} */ ({})) : Boolean(plan.cancelled),
    );
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
    line.textContent = this.over
      ? `${counted(plan.ids.length, "image")}, seed ${plan.settings.seed ?? "varied"}`
      : `${ended} of ${plan.ids.length} finished`;
    cancel.hidden = this.over;
    sheet.hidden = ended === 0;
  }
}

/**
 * @param {Axis} axis
 * @param {string} value
 */
export function titleOf(axis, value) {
  return axis.name === "word" ? value : `${labelOf(axis.name)} ${value}`;
}
