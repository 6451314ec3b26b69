/** Functions for finished images, which several parts of the page use. */

import { api, pathOf } from "./api.js";
import { shortened } from "./format.js";

/** @import {Job, JobImage} from "./jobs.js" */
/** @import {Settings} from "./form.js" */

/**
 * The name of a job's images, which is the shortened prompt.
 * @param {Job} job
 */
export function nameOf(job) {
  return shortened(job.parameters.prompt, 200) || "An image without a prompt";
}

/**
 * @param {Job} job
 * @param {JobImage} image
 */
function fileName(job, image) {
  const words = job.parameters.prompt.toLowerCase().match(/[a-z0-9]+/g) ?? ["image"];
  return `${words.slice(0, 6).join("-")}-${image.seed}.${image.format}`;
}

/**
 * @param {Job} job
 * @param {JobImage} image
 * @returns {Promise<File>}
 */
export async function fileOf(job, image) {
  const blob = await api.file(pathOf(image.url));
  return new File([blob], fileName(job, image), { type: blob.type });
}

/**
 * False for a job that only upscaled an image. Such a job has no settings to generate with.
 * @param {Job} job
 */
export function wasGenerated(job) {
  return job.parameters.sample_steps > 0;
}

/**
 * The settings that generate the same image again.
 * @param {Job} job
 * @param {JobImage | undefined} image
 * @returns {Settings}
 */
export function settingsOf(job, image) {
  // `generated_size` and `kernels` are results of the job, not settings.
  const {
    negative_prompt: negative = "",
    generated_size: _size,
    kernels: _kernels,
    ...parameters
  } = job.parameters;
  const one = image && job.parameters.n > 1 ? { seed: image.seed, n: 1 } : {};
  return { ...parameters, negative_prompt: negative, ...one };
}
