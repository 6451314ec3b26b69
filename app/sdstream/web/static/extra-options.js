/** Options that the form has no field for: kept with it, and sent along as they came. */

/**
 * What is drawn over: nothing, a whole image, what a mask opens, or a border around an image.
 * @typedef {"none" | "image" | "mask" | "border"} Source
 */

export const IMAGE = "the image that it was made from";
const MASK = "its mask";
const CONTROL = "its control picture";
const REFERENCES = "its reference images";

/** Options of pictures, which settings do not hold. @type {Record<string, string>} */
const PICTURES = {
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
const AT_HAND = {
  none: [],
  image: [IMAGE, REFERENCES],
  mask: [IMAGE, MASK],
  border: [IMAGE, MASK],
};

/**
 * The pictures that options would need, in words.
 * @param {object} options
 * @param {Source} source
 * @param {{control: boolean, references: boolean}} extra Which further images there are.
 */
export function missingPictures(options, source, extra) {
  const there = [...AT_HAND[source]];
  if (extra.control) there.push(CONTROL);
  if (extra.references) there.push(REFERENCES);
  const needed = Object.keys(options).map((name) => PICTURES[name]);
  return [...new Set(needed)].filter((picture) => picture && !there.includes(picture));
}

/**
 * The options that mean something with the pictures at hand.
 * @param {Record<string, unknown>} options
 * @param {Source} source
 * @param {{control: boolean, references: boolean}} extra
 */
export function withPictures(options, source, extra) {
  return Object.fromEntries(
    Object.entries(options).filter(
      ([name]) => !missingPictures({ [name]: true }, source, extra).length,
    ),
  );
}

/**
 * Options as a form or a query has them: lists of numbers with commas, LoRAs and others as JSON.
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
