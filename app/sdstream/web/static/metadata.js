/**
 * Settings out of image files: AUTOMATIC1111's text, in PNG text chunks or the EXIF comment of
 * JPEG and WebP.
 */

/** @import {Settings} from "./form.js" */

const PNG_SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const KEYWORD = "parameters";
const EXIF_IFD = 0x8769;
const USER_COMMENT = 0x9286;
const IFD_ENTRY = 12;
/** Files are strangers': a text is not unpacked to more than this. */
const MOST_TEXT = 1 << 20;

/**
 * Settings, and the names of facts that are none of ours.
 * @typedef {{settings: Settings, unread: string[]}} Found
 */

/**
 * The settings inside a file.
 * @param {Blob} file
 * @returns {Promise<Found | null>} Null when there are none.
 */
export async function readSettings(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    const text = await textInside(bytes);
    return text === null ? null : parseParameters(text);
  } catch (error) {
    // Past the end of a damaged file.
    if (error instanceof RangeError || error instanceof TypeError) return null;
    throw error;
  }
}

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Promise<string | null>}
 */
async function textInside(bytes) {
  if (PNG_SIGNATURE.every((value, at) => bytes[at] === value)) return pngText(bytes);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegText(bytes);
  if (latin1(bytes, 0, 4) === "RIFF" && latin1(bytes, 8, 12) === "WEBP") return webpText(bytes);
  return null;
}

// --- PNG -----------------------------------------------------------------------------------------

/**
 * @param {Uint8Array<ArrayBuffer>} bytes
 * @returns {Promise<string | null>}
 */
async function pngText(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = PNG_SIGNATURE.length; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = latin1(bytes, at + 4, at + 8);
    const chunk = bytes.subarray(at + 8, at + 8 + length);
    const end = chunk.indexOf(0);
    if (end > 0 && latin1(chunk, 0, end) === KEYWORD) {
      if (type === "tEXt") return latin1(chunk, end + 1);
      if (type === "zTXt") return latin1(await inflate(chunk.subarray(end + 2)));
      if (type === "iTXt") return internationalText(chunk.subarray(end + 1));
    }
    at += 12 + length;
  }
  return null;
}

/**
 * @param {Uint8Array<ArrayBuffer>} rest An iTXt chunk after its keyword: packed or not, method,
 *   language, translated keyword, text.
 */
async function internationalText(rest) {
  const packed = rest[0] === 1;
  const language = rest.indexOf(0, 2);
  const text = rest.subarray(rest.indexOf(0, language + 1) + 1);
  return new TextDecoder().decode(packed ? await inflate(text) : text);
}

/** @param {Uint8Array<ArrayBuffer>} packed */
async function inflate(packed) {
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const parts = [];
  let size = 0;
  for (const reader = stream.getReader(); size <= MOST_TEXT; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
  }
  return new Uint8Array(await new Blob(parts).slice(0, MOST_TEXT).arrayBuffer());
}

// --- JPEG and WebP -------------------------------------------------------------------------------

/** @param {Uint8Array<ArrayBuffer>} bytes */
function jpegText(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 2; at + 4 < bytes.length && bytes[at] === 0xff && bytes[at + 1] !== 0xda; ) {
    const length = view.getUint16(at + 2);
    if (bytes[at + 1] === 0xe1 && latin1(bytes, at + 4, at + 8) === "Exif") {
      return exifComment(bytes.slice(at + 10, at + 2 + length));
    }
    at += 2 + length;
  }
  return null;
}

/** @param {Uint8Array<ArrayBuffer>} bytes */
function webpText(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    const chunk = bytes.slice(at + 8, at + 8 + length);
    if (latin1(bytes, at, at + 4) === "EXIF") {
      return exifComment(latin1(chunk, 0, 4) === "Exif" ? chunk.slice(6) : chunk);
    }
    at += 8 + length + (length % 2);
  }
  return null;
}

/**
 * The UserComment of a TIFF structure.
 * @param {Uint8Array<ArrayBuffer>} tiff
 * @returns {string | null}
 */
function exifComment(tiff) {
  const view = new DataView(tiff.buffer);
  const little = latin1(tiff, 0, 2) === "II";
  const root = find(view, view.getUint32(4, little), EXIF_IFD, little);
  if (root === null) return null;
  const entry = find(view, view.getUint32(root + 8, little), USER_COMMENT, little);
  if (entry === null) return null;
  const length = view.getUint32(entry + 4, little);
  const start = view.getUint32(entry + 8, little);
  const mark = latin1(tiff, start, start + 8);
  const text = tiff.subarray(start + 8, start + length);
  if (mark === "UNICODE\0") return new TextDecoder("utf-16be").decode(text);
  return new TextDecoder().decode(text);
}

/**
 * Where a tag's entry is within a directory.
 * @param {DataView} view
 * @param {number} directory
 * @param {number} tag
 * @param {boolean} little
 */
function find(view, directory, tag, little) {
  const count = view.getUint16(directory, little);
  for (let i = 0; i < count; i += 1) {
    const entry = directory + 2 + i * IFD_ENTRY;
    if (view.getUint16(entry, little) === tag) return entry;
  }
  return null;
}

/**
 * @param {Uint8Array} bytes
 * @param {number} start
 * @param {number} [end]
 */
function latin1(bytes, start = 0, end = bytes.length) {
  let text = "";
  for (const byte of bytes.subarray(start, end)) text += String.fromCharCode(byte);
  return text;
}

// --- AUTOMATIC1111's text ------------------------------------------------------------------------

/**
 * What a fact says of the settings; null when it cannot be read.
 * @typedef {(value: string) => Settings | null} Reader
 */

/** @type {Record<string, Reader>} */
const FACTS = {
  Steps: number("sample_steps"),
  Sampler: (value) => ({ sampler: samplerName(value) }),
  "Schedule type": (value) => ({ schedule: scheduleName(value) }),
  "CFG scale": number("cfg_scale"),
  Seed: (value) => ({ seed: value }),
  Size: (value) => ({ size: value }),
  Model: (value) => ({ model: value }),
  "Distilled CFG Scale": number("guidance"),
  "Denoising strength": number("strength"),
  Eta: number("eta"),
  "Clip skip": number("clip_skip"),
  "Mask blur": number("mask_blur"),
  Shift: number("flow_shift"),
  "ControlNet weight": number("control_strength"),
  "ControlNet module": (value) => (value === "canny" ? { control_canny: true } : null),
  Sigmas: numbers("sigmas"),
  LoRA: (value) => ({ lora: pairsOf(value, ":").map(([id, scale]) => ({ id, scale })) }),
  "SLG scale": number("slg_scale"),
  "SLG start": number("slg_start"),
  "SLG end": number("slg_end"),
  "SLG layers": numbers("slg_layers"),
  Cache: (value) => ({ cache_mode: value }),
  "Cache options": (value) => ({ cache_options: Object.fromEntries(pairsOf(value, "=")) }),
  "Hires upscale": number("hires_scale"),
  "Hires steps": number("hires_steps"),
  "Hires denoising strength": number("hires_strength"),
  "Hires upscaler": (value) => ({ hires_upscaler: upscalerName(value) }),
  "Postprocess upscaler": (value) => ({ upscaler: value }),
  "Postprocess upscale by": number("upscale"),
};
/** "Name: value", and the value in quotes where it has a comma. */
const FACT = /([\w/-][\w /-]{0,63}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)/g;
/** Facts that say who drew the picture, and with which files. */
const ASIDE = /^Version$|^Hashes$| hash(es)?$/;

/**
 * @param {string} text The prompt, perhaps a line with the negative prompt, and a line of facts.
 * @returns {Found | null} Null when it is no such text.
 */
export function parseParameters(text) {
  const lines = text.trimEnd().split("\n");
  const pairs = [...(lines.pop() ?? "").matchAll(FACT)];
  if (!pairs.some(([, name]) => name === "Steps")) return null;
  const whole = lines.join("\n");
  const mark = /(?:^|\n)Negative prompt: ?/.exec(whole);
  /** @type {Settings} */
  const settings = {
    prompt: mark ? whole.slice(0, mark.index) : whole,
    negative_prompt: mark ? whole.slice(mark.index + mark[0].length) : "",
  };
  const unread = [];
  for (const [, name, value] of pairs) {
    const said = Object.hasOwn(FACTS, name) ? FACTS[name](unquoted(value.trim())) : null;
    Object.assign(settings, said);
    if (!said && !ASIDE.test(name)) unread.push(name);
  }
  if ("hires_scale" in settings && "strength" in settings) {
    // AUTOMATIC1111 has one name for both: a picture with a second pass was drawn over none.
    settings.hires_strength ??= settings.strength;
    delete settings.strength;
  }
  return { settings, unread };
}

/**
 * @param {string} option
 * @returns {Reader}
 */
function number(option) {
  return (value) => (isNumber(value) ? { [option]: Number(value) } : null);
}

/**
 * @param {string} option
 * @returns {Reader}
 */
function numbers(option) {
  return (value) => {
    const all = value.split(",");
    return all.every(isNumber) ? { [option]: all.map(Number) } : null;
  };
}

/** @param {string} text */
function isNumber(text) {
  return text.trim() !== "" && Number.isFinite(Number(text));
}

/**
 * Names with their numbers: "shapes:0.8, x:1".
 * @param {string} value
 * @param {string} between
 * @returns {[string, number][]}
 */
function pairsOf(value, between) {
  return value.split(",").map((pair) => {
    const end = pair.lastIndexOf(between);
    return [pair.slice(0, end).trim(), Number(pair.slice(end + 1))];
  });
}

/** @param {string} value In quotes where it could be taken for two. */
function unquoted(value) {
  if (!value.startsWith('"')) return value;
  try {
    return String(JSON.parse(value));
  } catch {
    return value;
  }
}

/**
 * Our name of a sampler: AUTOMATIC1111 writes "Euler a" and "DPM++ 2M".
 * @param {string} name
 */
function samplerName(name) {
  return name.toLowerCase().replace(/ a$/, "_a").replaceAll(" ", "");
}

/** @param {string} name */
function scheduleName(name) {
  const own = name.toLowerCase().replaceAll(" ", "_");
  return own === "automatic" ? "default" : own;
}

/**
 * Our name of what enlarges between two passes: AUTOMATIC1111 writes "Latent (nearest-exact)".
 * @param {string} name
 */
function upscalerName(name) {
  return name.toLowerCase().replace(/[ (]+/g, "-").replace(")", "");
}
