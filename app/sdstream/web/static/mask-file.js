/** Reads mask files. */

/**
 * @typedef {"auto" | "alpha" | "luminance" | "opacity"} MaskMode The values of the API's mask_mode.
 */

const BRIGHT = 128;

/**
 * Read a mask into a canvas of the image's size: opaque where the image may change, transparent
 * elsewhere.
 * @param {Blob} file
 * @param {{width: number, height: number}} size Size of the image.
 * @param {{mode?: MaskMode, inverted?: boolean}} [reading] How to read the mask.
 * @returns {Promise<OffscreenCanvas>} Rejected if the file is not an image.
 */
export async function readMask(file, size, { mode = "auto", inverted = false } = {}) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This file is not an image that can be read.");
  }
  const sheet = new OffscreenCanvas(size.width, size.height);
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d"));
  pen.imageSmoothingEnabled = false;
  pen.drawImage(bitmap, 0, 0, size.width, size.height);
  const pixels = pen.getImageData(0, 0, size.width, size.height);
  const { data } = pixels;
  const meant = mode === "auto" || mode === "opacity" ? read(data, mode) : mode;
  for (let at = 0; at < data.length; at += 4) {
    const bright = 0.299 * data[at] + 0.587 * data[at + 1] + 0.114 * data[at + 2] >= BRIGHT;
    const opaque = data[at + 3] >= BRIGHT;
    const open = { alpha: !opaque, opacity: opaque, luminance: bright && opaque }[meant];
    data[at + 3] = open !== inverted ? 255 : 0;
  }
  pen.putImageData(pixels, 0, 0);
  return sheet;
}

/**
 * @param {Uint8ClampedArray} data
 * @param {"auto" | "opacity"} mode
 * @returns {"alpha" | "opacity" | "luminance"}
 */
function read(data, mode) {
  const clear = data.some((value, at) => at % 4 === 3 && value < 255);
  if (!clear) return "luminance";
  return mode === "auto" ? "alpha" : "opacity";
}
