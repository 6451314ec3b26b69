/** What screen readers are told, without chatter: a job's start, each quarter, and its end. */

import { byId } from "./dom.js";
import { shortened } from "./format.js";

/** @import {Job} from "./jobs.js" */

const announcer = byId("announcer", HTMLElement);

/** Job id -> the last quarter that was told. @type {Map<string, number>} */
const told = new Map();

/** @param {string} text */
export function say(text) {
  // The same text twice is two announcements only if the region was empty between them.
  announcer.textContent = "";
  requestAnimationFrame(() => {
    announcer.textContent = text;
  });
}

/**
 * Tell what is new about a job, if it is worth telling.
 * @param {Job} job
 */
export function announceJob(job) {
  const quarter = quarterOf(job);
  const before = told.get(job.id) ?? -2;
  if (quarter <= before) return;
  told.set(job.id, quarter);
  const what = shortened(job.parameters.prompt, 60) || "The picture";
  if (quarter === -1) say(`Waiting: ${what}`);
  else if (quarter === 0) say(`Drawing: ${what}`);
  else if (quarter < 4) say(`${quarter * 25} percent`);
  else if (job.status === "completed") say(`Finished: ${what}`);
  else if (job.status === "cancelled") say(`Cancelled: ${what}`);
  else say(`Failed: ${what}. ${job.error?.message ?? ""}`);
}

/**
 * @param {Job} job
 * @returns {number} -1 waiting, 0 to 3 quarters drawn, 4 ended.
 */
function quarterOf(job) {
  if (job.status === "queued") return -1;
  if (job.status === "loading" || job.status === "running") {
    return Math.min(3, Math.floor(job.progress / 25));
  }
  return 4;
}
