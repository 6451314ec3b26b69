/** Loads the images that were uploaded with a job into the page again. */

import { api, pathOf } from "./api.js";

/** @import {Job} from "./jobs.js" */
/** @import {Easel} from "./canvas.js" */
/** @import {MaskMode} from "./mask-file.js" */

/**
 * Download the files of a job: image, image-2, …, mask or kept (an inverted mask), and control.
 * @param {Job} job
 * @returns {Promise<Map<string, File>>}
 */
export async function inputsOf(job) {
  const files = await Promise.all(
    (job.inputs ?? []).map(async ({ name, url }) => {
      const blob = await api.file(pathOf(url));
      return /** @type {const} */ ([name, new File([blob], `${name}.${endingOf(blob)}`, { type: blob.type })]);
    }),
  );
  return new Map(files);
}

/**
 * Put the image and the mask of a job onto the easel.
 * @param {Easel} easel
 * @param {Job} job
 * @param {Map<string, File>} files
 * @returns {Promise<boolean>} False when the job had no image.
 */
export async function putOnEasel(easel, job, files) {
  const image = files.get("image");
  if (!image) return false;
  await easel.load(image);
  const mode = /** @type {MaskMode} */ (job.parameters.mask_mode ?? "auto");
  const mask = files.get("mask");
  const kept = files.get("kept");
  if (mask) await easel.loadMask(mask, { mode });
  else if (kept) await easel.loadMask(kept, { mode, inverted: true });
  else if (mode === "alpha") await easel.loadMask(image, { mode });
  return true;
}

/** @param {Blob} blob */
function endingOf(blob) {
  return blob.type.split("/")[1] ?? "image";
}
