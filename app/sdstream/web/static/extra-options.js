/** Options without a field in the form, and the images that options need. */

/**
 * What an edit changes: nothing (no edit), a whole image, its masked part, or a border around it.
 * @typedef {"none" | "image" | "mask" | "border"} Source
 */

export const IMAGE = "the image to edit";
const MASK = "the mask";
const CONTROL = "the control image";
const REFERENCES = "the reference images";

/** Option -> the image that it needs, which is not part of settings. @type {Record<string, string>} */
const NEEDED_IMAGES = {
  strength: IMAGE,
  fit: IMAGE,
  mask_blur: MASK,
  only_masked: MASK,
  only_masked_padding: MASK,
  expand: IMAGE,
  reference_size: REFERENCES,
  control_strength: CONTROL,
  control_canny: CONTROL,
};
/** @type {Record<Source, string[]>} */
const AVAILABLE = {
  none: [],
  image: [IMAGE, REFERENCES],
  mask: [IMAGE, MASK],
  border: [IMAGE, MASK],
};

/**
 * Names of the images that options need and the page does not have.
 * @param {object} options
 * @param {Source} source
 * @param {{control: boolean, references: boolean}} extra Which further images the user has chosen.
 */
export function missingImages(options, source, extra) {
  const available = [...AVAILABLE[source]];
  if (extra.control) available.push(CONTROL);
  if (extra.references) available.push(REFERENCES);
  const needed = Object.keys(options).map((name) => NEEDED_IMAGES[name]);
  return [...new Set(needed)].filter((image) => image && !available.includes(image));
}

/**
 * The options without those whose images the page does not have.
 * @param {Record<string, unknown>} options
 * @param {Source} source
 * @param {{control: boolean, references: boolean}} extra
 */
export function withImages(options, source, extra) {
  return Object.fromEntries(
    Object.entries(options).filter(
      ([name]) => !missingImages({ [name]: true }, source, extra).length,
    ),
  );
}

/**
 * Write options as fields of a form or a query. Lists of numbers get commas; LoRAs and objects
 * become JSON.
 * @param {object} options
 * @returns {[string, string][]}
 */
export function asFields(options) {
  return Object.entries(options).map(([name, value]) => [name, asText(value)]);
}

/** @param {unknown} value */
function asText(value) {
  const nested = JSON.stringify(value).includes("{");
  return nested && typeof value === "object" ? JSON.stringify(value) : String(value);
}
