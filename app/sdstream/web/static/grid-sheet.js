/** Exports a grid as one PNG: the images with their labels, and the settings as a caption. */

import { fileOf } from "./images.js";
import { ROW, titleOf } from "./grid.js";
import { said, shortened } from "./format.js";
import { crc32 } from "./zip.js";

/** @import {Plan} from "./grid.js" */
/** @import {Job} from "./jobs.js" */
/** @import {Settings} from "./form.js" */

/** Sizes in pixels: the longest side of the sheet, gaps between images, and room for labels. */
const LONGEST = 8192;
const GAP = 8;
const LABEL = 28;
const SIDE_LABEL = 150;
/** Maximum length of a label, which is squeezed into the width of an image. */
const MOST_LETTERS = 30;
const CAPTION_LINE = 22;
const FONT = "15px system-ui, sans-serif";
/** Bytes of a PNG before its second chunk: signature and IHDR. */
const PNG_HEAD = 33;

/**
 * @param {Plan} plan
 * @param {Map<string, Job>} jobs
 * @returns {Promise<File>} A PNG.
 */
export async function sheetOf(plan, jobs) {
  const { across, down } = plan;
  // A single axis is broken into rows, as on the page, and each row has its own labels.
  const columns = down ? across.values.length : Math.min(across.values.length, ROW);
  const rows = Math.ceil(plan.ids.length / columns);
  const above = down ? 0 : LABEL;
  const images = await Promise.all(plan.ids.map((id) => imageOf(id ? jobs.get(id) : undefined)));
  const largest = images.reduce(
    (size, image) => ({
      width: Math.max(size.width, image?.width ?? 0),
      height: Math.max(size.height, image?.height ?? 0),
    }),
    { width: 64, height: 64 },
  );
  const left = down ? SIDE_LABEL : GAP;
  const scale = Math.min(
    1,
    ((LONGEST - left) / columns - GAP) / largest.width,
    ((LONGEST - 200) / rows - GAP - above) / largest.height,
  );
  const width = Math.round(largest.width * scale);
  const height = Math.round(largest.height * scale);
  const text = parametersOf(plan);
  const total = Math.max(left + columns * (width + GAP), 400);
  const probe = penOf(new OffscreenCanvas(1, 1));
  const lines = text.split("\n").flatMap((line) => wrapped(probe, line, total - 2 * GAP));
  const top = LABEL - above;
  const rowHeight = above + height + GAP;
  const sheet = new OffscreenCanvas(
    total,
    top + rows * rowHeight + GAP + lines.length * CAPTION_LINE,
  );
  const pen = penOf(sheet);
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, sheet.width, sheet.height);
  pen.fillStyle = "#222";
  across.values.forEach((value, index) => {
    const x = left + (index % columns) * (width + GAP);
    const y = Math.floor(index / columns) * rowHeight + LABEL / 2;
    pen.fillText(shortened(titleOf(across, value), MOST_LETTERS), x, y, width);
  });
  down?.values.forEach((value, row) => {
    const y = LABEL + row * rowHeight + height / 2;
    pen.fillText(shortened(titleOf(down, value), MOST_LETTERS), GAP, y, SIDE_LABEL - 2 * GAP);
  });
  images.forEach((image, index) => {
    if (!image) return;
    const x = left + (index % columns) * (width + GAP);
    const y = LABEL + Math.floor(index / columns) * rowHeight;
    pen.drawImage(image, x, y, image.width * scale, image.height * scale);
  });
  lines.forEach((line, number) => {
    const y = sheet.height - (lines.length - number - 0.5) * CAPTION_LINE;
    pen.fillText(line, GAP, y, total - 2 * GAP);
  });
  const blob = await sheet.convertToBlob({ type: "image/png" });
  const file = withText(new Uint8Array(await blob.arrayBuffer()), text);
  return new File(file, "grid.png", { type: "image/png" });
}

/** @param {Job | undefined} job */
async function imageOf(job) {
  const image = job?.images[0];
  return job && image ? createImageBitmap(await fileOf(job, image)) : null;
}

/** @param {OffscreenCanvas} canvas */
function penOf(canvas) {
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  pen.font = FONT;
  pen.textBaseline = "middle";
  return pen;
}

/**
 * @param {OffscreenCanvasRenderingContext2D} pen
 * @param {string} text
 * @param {number} width
 */
function wrapped(pen, text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = `${lines[lines.length - 1]} ${word}`.trim();
    if (pen.measureText(longer).width > width && lines[lines.length - 1]) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

/**
 * The settings that all cells share, and the axes, in AUTOMATIC1111's format.
 * @param {Plan} plan
 */
function parametersOf({ settings, across, down }) {
  /** @type {[string, keyof Settings][]} */
  const names = [
    ["Steps", "sample_steps"], ["Sampler", "sampler"], ["Schedule type", "schedule"],
    ["CFG scale", "cfg_scale"], ["Seed", "seed"], ["Size", "size"], ["Model", "model"],
    ["Denoising strength", "strength"],
  ];
  const facts = names
    .filter(([, option]) => settings[option] !== undefined)
    .map(([name, option]) => `${name}: ${quoted(said(settings[option]))}`);
  facts.push(`X axis: ${quoted(`${across.name} ${across.values.join(", ")}`)}`);
  if (down) facts.push(`Y axis: ${quoted(`${down.name} ${down.values.join(", ")}`)}`);
  const negative = settings.negative_prompt && `Negative prompt: ${settings.negative_prompt}`;
  return [settings.prompt, negative, facts.join(", ")].filter(Boolean).join("\n");
}

/** @param {string} text */
function quoted(text) {
  return /[,:"\n]/.test(text) ? JSON.stringify(text) : text;
}

/**
 * Add a text to a PNG as `parameters`, the name under which programs look for settings.
 * @param {Uint8Array} png
 * @param {string} text
 * @returns {BlobPart[]}
 */
function withText(png, text) {
  const data = new TextEncoder().encode(`iTXtparameters\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(data.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length - 4);
  chunk.set(data, 4);
  view.setUint32(data.length + 4, crc32(data));
  return [png.slice(0, PNG_HEAD), chunk, png.slice(PNG_HEAD)];
}
