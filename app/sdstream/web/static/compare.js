/** Groups of jobs whose images fill a grid: comparisons and lists of prompts. */

import { api, ApiError } from "./api.js";
import { byId, save } from "./dom.js";
import { cellOf, GridForm, MOST_CELLS } from "./grid-form.js";
import { Grid } from "./grid.js";
import { sheetOf } from "./grid-sheet.js";
import { tell } from "./header.js";
import { forget, keep, recallJson } from "./storage.js";

/** @import {Form, Settings} from "./form.js" */
/** @import {Ask, Job, Jobs} from "./jobs.js" */
/** @import {Axis, Plan} from "./grid.js" */
/** @import {Stage} from "./stage.js" */

const AGAIN_MS = 1_000;
const TOO_MANY = 429;
const SEEDS = 2 ** 32;

/** Fires "open" with a Job as detail. */
export class Compare extends EventTarget {
  grid = new Grid();
  form = new GridForm();
  #form;
  #jobs;
  #stage;
  #asker;

  /**
   * @param {Form} form Has the settings that all cells share.
   * @param {Jobs} jobs
   * @param {Stage} stage
   * @param {() => Promise<(settings: Settings) => Ask>} asker Captures the files of all cells.
   */
  constructor(form, jobs, stage, asker) {
    super();
    this.#form = form;
    this.#jobs = jobs;
    this.#stage = stage;
    this.#asker = asker;
    this.form.addEventListener("compare", () => this.#begin());
    jobs.addEventListener("change", (event) => this.grid.update(/** @type {CustomEvent} */ (event).detail));
    this.grid.addEventListener("cancel", () => this.#cancel());
    this.grid.addEventListener("sheet", () => this.#download());
    this.grid.addEventListener("open", (event) => {
      this.dispatchEvent(new CustomEvent("open", { detail: /** @type {CustomEvent} */ (event).detail }));
    });
  }

  /** Restore the comparison of an earlier visit, if the server still has its jobs. */
  async restore() {
    const plan = /** @type {Plan | null} */ (recallJson("grid"));
    if (!plan || this.grid.plan) return;
    const page = await api.get(`v1/jobs?limit=100&group=${encodeURIComponent(plan.group)}`);
    if (!page.data.length) return forget("grid");
    this.grid.show(plan);
    for (const job of page.data) this.grid.update(job);
    this.#stage.addGrid();
  }

  /** Forget the grid; its remaining jobs are not submitted. */
  clear() {
    if (this.grid.plan) this.grid.plan.cancelled = true;
    this.grid.plan = null;
    this.#stage.removeGrid();
  }

  /**
   * Generate several prompts with the same settings, one job each; throws an Error if a job is
   * rejected.
   * @param {string[]} prompts
   */
  async generatePrompts(prompts) {
    if (prompts.length > MOST_CELLS) {
      const message = `Enter at most ${MOST_CELLS} prompts; there are ${prompts.length}.`;
      return this.#form.showError("prompt", message);
    }
    const across = { name: "prompt", values: prompts };
    const { prompt: _, ...settings } = this.#form.read();
    await this.#run({ settings, across, down: null });
  }

  async #begin() {
    const settings = { ...this.#form.read(), n: 1 };
    // Without a common seed, the images would differ by their seeds too.
    settings.seed ??= String(Math.floor(Math.random() * SEEDS));
    try {
      if (!settings.prompt?.trim()) throw new Error("Enter a prompt.");
      if (this.#form.prompts) throw new Error("Switch “One prompt per line” off to compare settings.");
      await this.#run({ settings, ...this.form.read(settings) });
    } catch (error) {
      this.form.showError(/** @type {Error} */ (error).message);
    }
  }

  /**
   * Submit one job for each cell of a grid, as a group; cancels all of them if one is rejected.
   * @param {{settings: Settings, across: Axis, down: Axis | null}} grid
   */
  async #run({ settings, across, down }) {
    const last = this.grid.plan;
    if (last?.sending && !last.cancelled) {
      throw new Error("The last group is still being submitted. Wait for its end, or cancel it.");
    }
    const group = `grid-${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
    const cells = across.values.length * (down?.values.length ?? 1);
    /** @type {Plan} */
    const plan = { group, settings, across, down, ids: Array(cells).fill(null), sending: true };
    this.grid.show(plan);
    this.#stage.showGrid();
    byId("stage", HTMLElement).scrollIntoView({ block: "start" });
    try {
      await this.#send(plan);
    } catch (error) {
      await this.#cancel();
      throw error;
    } finally {
      this.grid.sent(plan);
      if (this.grid.plan === plan) keep("grid", JSON.stringify(plan));
    }
  }

  /** @param {Plan} plan */
  async #send(plan) {
    const { across, down, settings, group, ids } = plan;
    const ask = await this.#asker();
    for (let index = 0; index < ids.length; index += 1) {
      const column = index % across.values.length;
      const row = Math.floor(index / across.values.length);
      const chosen = [{ axis: across, value: across.values[column] }];
      if (down) chosen.push({ axis: down, value: down.values[row] });
      const job = await this.#submit(plan, ask({ ...cellOf(settings, chosen), group }));
      if (!job) return;
      ids[index] = job.id;
      this.grid.update(job);
      // This job was submitted while the others were being cancelled.
      if (plan.cancelled) await api.post("v1/jobs/cancel", { body: { ids: [job.id] } });
    }
  }

  /**
   * @param {Plan} plan
   * @param {Ask} ask
   * @returns {Promise<Job | null>} Null when the comparison was cancelled meanwhile.
   */
  async #submit(plan, ask) {
    while (!plan.cancelled) {
      try {
        return await this.#jobs.submit(ask);
      } catch (error) {
        if (!passes(error)) throw error;
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
    return null;
  }

  async #cancel(plan = this.grid.plan) {
    if (!plan) return;
    if (plan === this.grid.plan) this.grid.cancelled();
    try {
      await api.post("v1/jobs/cancel", { body: { group: plan.group } });
      await this.#jobs.refresh();
    } catch (error) {
      if (api.reachable) tell(`The jobs could not be cancelled. ${/** @type {Error} */ (error).message}`);
      // The next change of the connection is that the server responds again.
      else api.addEventListener("connection", () => this.#cancel(plan), { once: true });
    }
  }

  async #download() {
    const { plan, jobs } = this.grid;
    if (!plan) return;
    try {
      save(await sheetOf(plan, jobs));
    } catch (error) {
      tell(`The sheet could not be made. ${/** @type {Error} */ (error).message}`);
    }
  }
}

/**
 * True if the same request may succeed soon: the queue is full, or the server does not respond.
 * @param {unknown} error
 */
function passes(error) {
  if (!api.reachable) return true;
  return error instanceof ApiError && (error.status === TOO_MANY || error.reason === "shutting_down");
}
