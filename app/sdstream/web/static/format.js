/** Texts for numbers, states, options and errors. */

/** @import {Job, JobImage} from "./jobs.js" */

const MOST_LISTED = 8;
/** Labels of options that labelOf cannot derive from their names. @type {Record<string, string>} */
const LABELS = { sample_steps: "Steps", lora: "LoRA" };

/**
 * @param {number} seconds
 * @returns {string} "4 s", "1 min 10 s", "2 h 5 min".
 */
function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/**
 * @param {string} text
 * @param {number} length
 */
export function shortened(text, length) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > length ? `${line.slice(0, length - 1).trimEnd()}…` : line;
}

/**
 * @param {number} count
 * @param {string} one
 * @param {string} [many]
 */
export function counted(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/**
 * A number of bytes as "10.5 GB".
 * @param {number} bytes
 */
export function gigabytes(bytes) {
  return `${(bytes / 1e9).toFixed(1)} GB`;
}

/**
 * A list of names as "a, b and c".
 * @param {string[]} names
 */
export function listed(names) {
  const more = names.length - MOST_LISTED;
  const shown = more > 0 ? [...names.slice(0, MOST_LISTED), `${more} more`] : names;
  return shown.join(", ").replace(/, ([^,]*)$/, " and $1");
}

/**
 * An option's value as text: "2", "7, 8, 9", "shapes 0.8" for a LoRA, "warmup 4".
 * @param {unknown} value
 * @returns {string}
 */
export function said(value) {
  if (typeof value !== "object" || value === null) return String(value);
  if (!Array.isArray(value)) return Object.entries(value).map((pair) => pair.join(" ")).join(", ");
  return value.map((one) => (typeof one === "object" ? Object.values(one).join(" ") : one)).join(", ");
}

/** Reason of an error -> what to do. @type {Record<string, string>} */
const REMEDIES = {
  interrupted: "The server restarted; generate again.",
  shutting_down: "The server restarts; generate again in a moment.",
  worker_crashed: "The model was restarted; generate again, or choose a smaller size.",
  worker_killed: "The model ran out of memory; choose a smaller size.",
  worker_hung: "The model was restarted; generate again.",
  model_unavailable: "Choose another model, or ask the server’s operator.",
  storage_full: "Delete images from the gallery, then generate again.",
  storage_unavailable: "Generate again in a moment.",
  content_policy_violation: "Change the prompt.",
  generation_failed: "Generate again, or change the settings.",
  internal_error: "Generate again; the server’s log has the cause.",
  queue_full: "Wait for an image to finish, or cancel jobs in the queue.",
  model_not_found: "Choose another model.",
};

/**
 * A sentence on what to do next; empty if the message is enough.
 * @param {string | null | undefined} reason
 */
export function remedy(reason) {
  return (reason && REMEDIES[reason]) || "";
}

/**
 * The state of a job in one line.
 * @param {Job} job
 */
export function progressLine(job) {
  return [position(job), speed(job), timeLeft(job)].filter(Boolean).join(" · ");
}

/** @param {Job} job */
function position(job) {
  switch (job.status) {
    case "queued":
      if (job.queue_position === null) return "Waiting";
      return job.queue_position ? `${counted(job.queue_position, "job")} ahead` : "Next in line";
    case "loading":
      return "Loading the model";
    case "running":
      return [imageOf(job), stepOf(job)].filter(Boolean).join(" · ");
    case "completed":
      return "Finished";
    case "cancelled": {
      const { images, parameters } = job;
      return images.length ? `Cancelled after ${images.length} of ${counted(parameters.n, "image")}` : "Cancelled";
    }
    default:
      return `Failed: ${job.error?.message ?? ""}`;
  }
}

/** @param {Job} job */
function imageOf(job) {
  const { n } = job.parameters;
  return n > 1 ? `Image ${Math.min(job.index + 1, n)} of ${n}` : "";
}

/** @param {Job} job */
function stepOf(job) {
  if (!job.step) return "Reading the prompt";
  return job.step < job.steps ? `Step ${job.step} of ${job.steps}` : "Finishing";
}

/** @param {Job} job */
function speed(job) {
  const rate = job.status === "running" ? job.steps_per_second : null;
  if (!rate) return "";
  return rate >= 1 ? `${rate.toFixed(1)} steps/s` : `${duration(1 / rate)} a step`;
}

/** @param {Job} job */
function timeLeft(job) {
  if (job.eta_seconds === null || job.ended) return "";
  const left = job.eta_seconds - (performance.now() - job.heard) / 1000;
  return left > 0.5 ? `${duration(left)} left` : "";
}

/**
 * Labels and values of all options of an image, without the prompt.
 * @param {Job} job
 * @param {JobImage | null} image
 * @returns {[string, string][]}
 */
export function facts(job, image) {
  const { prompt, n, negative_prompt: negative, model, size, seed, ...options } = job.parameters;
  const finalSize = image ? `${image.width}x${image.height}` : size;
  /** @type {[string, unknown][]} */
  const pairs = [
    ["Negative prompt", negative],
    ["Model", model],
    ["Size", spaced(finalSize)],
    ["Before enlarging", finalSize === size ? "" : spaced(size)],
  ];
  for (const [name, value] of Object.entries(options)) {
    pairs.push([labelOf(name), name === "generated_size" ? spaced(String(value)) : value]);
  }
  pairs.push(["Seed", image?.seed ?? seed]);
  return pairs
    .filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => [name, said(value)]);
}

/**
 * A size as "128 × 128".
 * @param {string | undefined} size "128x128".
 */
function spaced(size) {
  return size?.replace("x", " × ");
}

/**
 * The label of an option.
 * @param {string} name
 */
export function labelOf(name) {
  const words = name.replaceAll("_", " ").replace(/^(cfg|clip|slg|vae)\b/, (word) => word.toUpperCase());
  return LABELS[name] ?? words.charAt(0).toUpperCase() + words.slice(1);
}

/**
 * The message of an error without the leading name of the field, to show beside the field.
 * @param {string} message
 */
export function sentence(message) {
  const text = message.replace(/^'[^']*'(?:: | (?=must ))/, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
