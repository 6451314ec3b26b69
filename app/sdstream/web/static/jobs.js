/**
 * The jobs that this page knows, kept up to date.
 *
 * The page reads the events of one job at a time: the job on the stage and, after its end, the next
 * job of this browser. A browser opens only six connections to a server for all its tabs, so the
 * page polls the other unfinished jobs every two seconds, and sooner when the queue has moved. A
 * hidden tab reads no events.
 */

import { api, ApiError } from "./api.js";
import { Feed } from "./feed.js";
import { keep, recallJson } from "./storage.js";

/**
 * @typedef {{index: number, seed: string, url: string, format: string, width: number,
 *   height: number, bytes: number}} JobImage
 */

/**
 * A job as the server sends it, with its last preview and the time of the last update.
 * @typedef {object} Job
 * @property {string} id
 * @property {"queued" | "loading" | "running" | "completed" | "failed" | "cancelled"} status
 * @property {string} operation
 * @property {number | null} queue_position
 * @property {number} progress Percent.
 * @property {number} index Index of the image that is being generated.
 * @property {number} step
 * @property {number} steps
 * @property {number | null} steps_per_second
 * @property {number | null} eta_seconds
 * @property {number} created
 * @property {number | null} ended
 * @property {{model: string, prompt: string, negative_prompt: string, n: number, size: string,
 *   seed: string, sample_steps: number, sampler: string, schedule: string, cfg_scale: number,
 *   guidance?: number, strength?: number} & Record<string, unknown>} parameters
 * @property {string[]} warnings
 * @property {JobImage[]} images
 * @property {{message: string, param: string | null, reason: string | null} | null} error
 * @property {{index: number, step: number, url: string} | null} [preview]
 * @property {boolean} favorite True for a job that does not expire.
 * @property {{name: string, url: string, bytes: number}[]} inputs The files uploaded with the job.
 * @property {number} heard Time of the last update, by performance.now().
 */

/**
 * A request for images.
 * @typedef {{path: string, body: object | FormData}} Ask
 */

const UNFINISHED = "queued,loading,running";
/** Maximum number of ids in one request. */
const AT_ONCE = 1000;
const POLL_MS = 2_000;
/** Delay of a poll after the queue has moved; several jobs may end together. */
const SOON_MS = 250;
const REOPEN_MS = 1_000;
const REMEMBERED = 200;
/** Maximum number of pages of unfinished jobs that one refresh reads. */
const MOST_PAGES = 20;

/** @param {Job} job */
export function isOver(job) {
  return job.status === "completed" || job.status === "failed" || job.status === "cancelled";
}

/**
 * Fires "change" with a Job as detail, "ended" too when the page sees its end, and "gone" with a
 * job's id.
 */
export class Jobs extends EventTarget {
  /** @type {Map<string, Job>} */
  #known = new Map();
  /** Ids of the jobs that this browser submitted. @type {Set<string>} */
  #mine = new Set(recallJson("mine") ?? []);
  /** Id of the job on the stage. @type {string | null} */
  #watched = null;
  /** Id of the job whose events are read. @type {string | null} */
  #followed = null;
  /** @type {Feed | null} */
  #feed = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;
  /** Time of the next poll, by performance.now(). */
  #due = 0;
  /** @type {{body: string | FormData, key: string} | null} */
  #unanswered = null;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => this.#follow());
    addEventListener("storage", ({ key }) => {
      if (key !== "sdstream.mine") return;
      // Another tab has submitted a job.
      this.#mine = new Set(recallJson("mine") ?? []);
      this.refresh().catch(() => {});
    });
  }

  /** The jobs that have not ended, in the order of submission. */
  get unfinished() {
    const open = [...this.#known.values()].filter((job) => !isOver(job));
    return open.sort((a, b) => a.created - b.created);
  }

  /** Forget all jobs. */
  clear() {
    this.#known.clear();
    this.#unanswered = null;
    this.watch(null);
  }

  /** @param {string} id */
  isMine(id) {
    return this.#mine.has(id);
  }

  /**
   * Submit a job.
   * @param {Ask} ask
   * @returns {Promise<Job>}
   */
  async submit(ask) {
    const job = await api.post(ask.path, {
      body: ask.body,
      headers: { Prefer: "respond-async", ...this.#idempotency(ask.body) },
    });
    this.#unanswered = null;
    this.#mine.add(job.id);
    keep("mine", JSON.stringify([...this.#mine].slice(-REMEMBERED)));
    return this.#take(job);
  }

  /** Load all unfinished jobs, and reload known jobs that have ended meanwhile. */
  async refresh() {
    const open = new Set();
    let after = "";
    for (let page = 0; page < MOST_PAGES; page += 1) {
      const list = await api.get(`v1/jobs?status=${UNFINISHED}&limit=100${after}`);
      for (const job of list.data) {
        open.add(job.id);
        // The events of the followed job are newer than the list.
        if (job.id !== this.#followed) this.#take(job);
      }
      if (!list.has_more) break;
      after = `&after=${list.last_id}`;
    }
    for (const job of this.unfinished) if (!open.has(job.id)) await this.#reload(job.id);
    this.#plan();
  }

  /**
   * Read the events of a job until it ends.
   * @param {Job | null} job
   */
  watch(job) {
    this.#watched = job?.id ?? null;
    if (job) this.#take(job);
    this.#follow();
  }

  /** @param {Job} job */
  async cancel(job) {
    this.#take(await api.post(`v1/jobs/${job.id}/cancel`));
  }

  /**
   * Cancel several jobs at once.
   * @param {Job[]} jobs
   */
  async cancelAll(jobs) {
    for (let start = 0; start < jobs.length; start += AT_ONCE) {
      const ids = jobs.slice(start, start + AT_ONCE).map((job) => job.id);
      await api.post("v1/jobs/cancel", { body: { ids } });
    }
    await this.refresh();
  }

  /**
   * Delete several jobs with their images.
   * @param {string[]} ids
   */
  async removeAll(ids) {
    for (let start = 0; start < ids.length; start += AT_ONCE) {
      const part = ids.slice(start, start + AT_ONCE);
      await api.post("v1/jobs/delete", { body: { ids: part } });
      for (const id of part) this.#gone(id);
    }
  }

  /**
   * Mark a job as a favorite, or remove the mark.
   * @param {Job} job
   * @param {boolean} favorite
   */
  async mark(job, favorite) {
    const news = await api.post(`v1/jobs/${job.id}`, { body: { favorite } });
    job.favorite = news.favorite;
    this.#take(news);
  }

  /** @param {string} id */
  async remove(id) {
    try {
      await api.delete(`v1/jobs/${id}`);
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
    }
    this.#gone(id);
  }

  /**
   * A header for a retry after a lost response: if the first request created a job, the server
   * returns that job. A form with files is a retry only if it is the same object.
   * @param {object | FormData} body
   * @returns {Record<string, string>}
   */
  #idempotency(body) {
    const same = body instanceof FormData ? body : JSON.stringify(body);
    if (this.#unanswered?.body !== same) this.#unanswered = { body: same, key: randomId() };
    return { "Idempotency-Key": this.#unanswered.key };
  }

  #follow() {
    const id = document.hidden ? null : this.#wanted();
    if (id !== this.#followed) {
      this.#feed?.close();
      this.#feed = null;
      this.#followed = id;
      if (id) {
        this.#feed = new Feed(`v1/jobs/${id}/events`, {
          event: (name, data) => this.#hear(id, name, data),
          rejected: () => this.#rejected(id),
        });
        this.#feed.open();
      }
    }
    this.#plan();
  }

  /** Id of the job whose events the page should read. */
  #wanted() {
    const open = this.unfinished;
    const kept = (/** @type {string | null} */ id) => open.some((job) => job.id === id);
    if (kept(this.#watched)) return this.#watched;
    if (kept(this.#followed)) return this.#followed;
    const mine = open.filter((job) => this.isMine(job.id));
    const next = mine.find((job) => job.status !== "queued") ?? mine[0];
    return next?.id ?? null;
  }

  /** @param {string} id */
  async #rejected(id) {
    await this.#reload(id).catch(() => {});
    const feed = this.#feed;
    if (id === this.#followed && feed) setTimeout(() => feed === this.#feed && feed.open(), REOPEN_MS);
  }

  /**
   * @param {string} id
   * @param {string} name
   * @param {any} data
   */
  #hear(id, name, data) {
    const job = this.#known.get(id);
    if (!job) return;
    const { status, queue_position: place } = job;
    if (name === "preview") {
      this.#take({ ...job, preview: data });
    } else if (name === "image") {
      const others = job.images.filter((image) => image.index !== data.index);
      const images = [...others, data].sort((a, b) => a.index - b.index);
      this.#take({ ...job, images, preview: null });
    } else {
      this.#take({ ...job, ...data });
      // The places of the other jobs have changed too.
      if (job.status !== status || job.queue_position !== place) this.#plan(SOON_MS);
    }
  }

  /**
   * @param {Job} news
   * @returns {Job}
   */
  #take(news) {
    const job = this.#known.get(news.id);
    // A list may be older than the end that an event has reported.
    if (job && isOver(job) && !isOver(news)) return job;
    const ended = job && isOver(news) && !isOver(job);
    const kept = Object.assign(job ?? news, news, { heard: performance.now() });
    this.#known.set(kept.id, kept);
    this.dispatchEvent(new CustomEvent("change", { detail: kept }));
    if (ended) this.dispatchEvent(new CustomEvent("ended", { detail: kept }));
    const next = !this.#followed && this.isMine(kept.id) && !isOver(kept);
    if (next || (kept.id === this.#followed && isOver(kept))) this.#follow();
    this.#plan();
    return kept;
  }

  /** @param {string} id */
  async #reload(id) {
    try {
      this.#take(await api.get(`v1/jobs/${id}`));
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 404) throw error;
      this.#gone(id);
    }
  }

  /** @param {string} id */
  #gone(id) {
    this.#known.delete(id);
    if (id === this.#watched) this.#watched = null;
    this.#follow();
    this.dispatchEvent(new CustomEvent("gone", { detail: id }));
  }

  /**
   * Schedule a poll, if there are unfinished jobs whose events the page does not read.
   * @param {number} [wait] Milliseconds.
   */
  #plan(wait = POLL_MS) {
    if (this.unfinished.every((job) => job.id === this.#followed)) return;
    const due = performance.now() + wait;
    if (this.#timer !== undefined && this.#due <= due) return;
    clearTimeout(this.#timer);
    this.#due = due;
    this.#timer = setTimeout(async () => {
      this.#timer = undefined;
      if (api.reachable && !api.locked) await this.refresh().catch(() => {});
      this.#plan();
    }, wait);
  }
}

/** A random id; crypto.randomUUID exists on HTTPS and localhost only. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
