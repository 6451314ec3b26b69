/** Announcements for screen readers: the start of a job, each quarter, and its end. */

import { byId } from "./dom.js";
import { shortened } from "./format.js";

/** @import {Job} from "./jobs.js" */

const ENDED = 4;

const announcer = byId("announcer", HTMLElement);

/** Job id -> the last quarter that was announced. @type {Map<string, number>} */
const announced = new Map();

/** @param {string} text */
export function say(text) {
  // A repeated text is announced again only if the region was empty in between.
  announcer.textContent = "";
  requestAnimationFrame(() => {
    announcer.textContent = text;
  });
}

/**
 * Announce a job when it reaches a new quarter. A job that has ended before the page learns of it
 * is not announced.
 * @param {Job} job
 */
export function announceJob(job) {
  const quarter = quarterOf(job);
  const before = announced.get(job.id) ?? (quarter === ENDED ? ENDED : -2);
  announced.set(job.id, Math.max(quarter, before));
  if (quarter <= before) return;
  const what = shortened(job.parameters.prompt, 60) || "The image";
  if (quarter === -1) say(`Waiting: ${what}`);
  else if (quarter === 0) say(`Generating: ${what}`);
  else if (quarter < ENDED) say(`${quarter * 25} percent`);
  else if (job.status === "completed") say(`Finished: ${what}`);
  else if (job.status === "cancelled") say(`Cancelled: ${what}`);
  else say(`Failed: ${what}. ${job.error?.message ?? ""}`);
}

/**
 * @param {Job} job
 * @returns {number} -1: waiting; 0 to 3: number of finished quarters; or ENDED.
 */
function quarterOf(job) {
  if (job.status === "queued") return -1;
  if (job.status === "loading" || job.status === "running") {
    return Math.min(3, Math.floor(job.progress / 25));
  }
  return ENDED;
}
