/** Creates the parts of the page and connects them. */

import { announceJob } from "./announce.js";
import { api, ApiError } from "./api.js";
import { Border } from "./border.js";
import { Easel } from "./canvas.js";
import { ClusterStatus } from "./cluster.js";
import { CodePanel } from "./code.js";
import { Compare } from "./compare.js";
import { byId, held, save } from "./dom.js";
import { acceptFiles } from "./drop.js";
import { Form } from "./form.js";
import { ExtraImages } from "./extra-images.js";
import { asFields, IMAGE } from "./extra-options.js";
import { Gallery } from "./gallery.js";
import { setFilterModels } from "./gallery-filter.js";
import { tell } from "./header.js";
import { inputsOf, putOnEasel } from "./inputs.js";
import { isOver, Jobs } from "./jobs.js";
import { fileOf, settingsOf } from "./images.js";
import { Queue } from "./queue.js";
import { Selection } from "./selection.js";
import { LoraTags } from "./lora-tags.js";
import { Options } from "./options.js";
import { Presets } from "./presets.js";
import { Stage } from "./stage.js";
import { Viewer } from "./viewer.js";
import { labelOf, listed, remedy } from "./format.js";

/** @import {Ask, Job, JobImage} from "./jobs.js" */
/** @import {Settings} from "./form.js" */

const MODELS_AGAIN_MS = 3_000;
const HEARTBEAT_MS = 10_000;
/** If sending a request takes longer than this, the button shows it. */
const SLOW_MS = 500;
const TOO_MANY = 429;
const NO_SETTINGS = "This file contains no settings.";
/** Form, stage and gallery are stacked in a narrow window. */
const NARROW = matchMedia("(max-width: 48rem)");

const form = new Form();
const easel = new Easel();
const border = new Border();
const jobs = new Jobs();
const stage = new Stage();
const queue = new Queue();
const gallery = new Gallery();
const code = new CodePanel();
const options = new Options();
const extraImages = new ExtraImages();
const loraTags = new LoraTags();
const viewer = new Viewer(gallery, (id) => jobs.remove(id));
new Selection(gallery, jobs);
const compare = new Compare(form, jobs, stage, asker);
const presets = new Presets(form);
const cluster = new ClusterStatus();

/** A job and the one of its images that is shown. @typedef {{job: Job, image?: JobImage}} Shown */

/** True if the form shows the error that the queue is full. */
let crowded = false;
/** Number of calls of take() so far. */
let taken = 0;
/** Names of the server's upscalers. @type {string[]} */
let upscalers = [];
/** Timer of the next load of the models. @type {ReturnType<typeof setTimeout> | undefined} */
let modelsAgain;

// --- requests -------------------------------------------------------------------------------------

/** The files to send with a request: those that the chosen model accepts. */
function filesNow() {
  const { capabilities } = form.model ?? {};
  const references = capabilities?.reference_images ? extraImages.references : [];
  const control = capabilities?.control ? extraImages.control : null;
  return { images: easel.file ? [easel.file, ...references] : references, control };
}

/**
 * Capture the current files and the current mask.
 * @returns {Promise<(settings: Settings) => Ask>} Builds a request with these files from settings.
 */
async function asker() {
  const { images, control } = filesNow();
  const mask = await easel.mask();
  return (settings) => {
    if (!images.length && !control) {
      const body = { ...settings, stream_options: { preview: true } };
      return { path: "v1/images/generations", body };
    }
    const body = new FormData();
    for (const [name, text] of asFields(settings)) body.append(name, text);
    body.append("stream_options_preview", "true");
    for (const image of images) body.append("image", image);
    if (control) body.append("control", control);
    if (mask) {
      body.append("mask_mode", "luminance");
      body.append("mask", mask);
    }
    return { path: images.length ? "v1/images/edits" : "v1/images/generations", body };
  };
}

async function generate() {
  api.locked = false;
  const slow = setTimeout(() => form.setSending(true), SLOW_MS);
  try {
    if (form.prompts) return await compare.generatePrompts(form.prompts);
    const settings = form.read();
    const ask = await asker();
    const job = await jobs.submit(ask(settings));
    if (stage.free) present(job);
    if (stage.job === job) stage.showImage();
    showQueue();
    if (NARROW.matches) byId("stage", HTMLElement).scrollIntoView();
  } catch (error) {
    const rejected = error instanceof ApiError ? error : null;
    const next = remedy(rejected?.reason);
    const { message } = /** @type {Error} */ (error);
    form.showError(rejected?.param ?? null, next ? `${message} ${next}` : message);
    crowded = rejected?.status === TOO_MANY;
  } finally {
    clearTimeout(slow);
    form.setSending(false);
  }
}

/**
 * Show a job on the stage and follow its events.
 * @param {Job | null} job
 */
function present(job) {
  stage.show(job);
  jobs.watch(job);
  showQueue();
}

function showQueue() {
  queue.show(jobs.unfinished.filter((job) => job.id !== stage.job?.id));
}

/** @param {Job} job */
function onChange(job) {
  if (job.id === stage.job?.id) {
    stage.job = job;
    stage.update();
  } else if (!isOver(job)) {
    presentNext(job);
  }
  if (jobs.isMine(job.id)) announceJob(job);
  if (isOver(job)) {
    if (crowded) form.clearTrouble();
    gallery.add(job);
    gallery.update(job);
  }
  showQueue();
}

/** @param {Job} job */
function onEnd(job) {
  presentNext(job);
  if (jobs.isMine(job.id) && job.images.length) form.setLastSeed(job.parameters.seed);
}

/**
 * Present a job of this browser that has started or ended, if the stage is free.
 * @param {Job} job
 */
function presentNext(job) {
  if (stage.free && jobs.isMine(job.id) && hasNews(job)) present(job);
}

/**
 * True for a job that has something to show and is newer than the job on the stage.
 * @param {Job} job
 */
function hasNews(job) {
  if (job.status === "queued" || job.status === "cancelled") return false;
  return !stage.job || job.created > stage.job.created;
}

/** @param {Job} job */
async function cancel(job) {
  try {
    await jobs.cancel(job);
  } catch (error) {
    tell(`The job could not be cancelled. ${/** @type {Error} */ (error).message}`);
  }
}

form.addEventListener("generate", generate);
form.addEventListener("lack", () => {
  api.locked = false;
  loadModels();
});
jobs.addEventListener("change", (event) => onChange(detailOf(event)));
jobs.addEventListener("ended", (event) => onEnd(detailOf(event)));
jobs.addEventListener("gone", (event) => {
  const id = detailOf(event);
  gallery.remove(id);
  if (stage.job?.id === id) stage.show(null);
  showQueue();
});
stage.addEventListener("cancel", (event) => cancel(detailOf(event)));
queue.addEventListener("cancel", (event) => cancel(detailOf(event)));
queue.addEventListener("cancelall", async (event) => {
  try {
    await jobs.cancelAll(detailOf(event));
  } catch (error) {
    tell(`The jobs could not be cancelled. ${/** @type {Error} */ (error).message}`);
  }
});
queue.addEventListener("open", (event) => {
  present(detailOf(event));
  stage.showImage();
});
stage.addEventListener("again", async (event) => {
  const job = detailOf(event);
  removeOther(job);
  if (!(await reuse({ job }))) return;
  stage.showImage();
  form.generate();
});
stage.addEventListener("model", (event) => {
  const { job, model } = detailOf(event);
  removeOther(job);
  // The other model's defaults suit it better than the settings of this job.
  const { prompt, negative_prompt } = job.parameters;
  form.apply({ model, prompt, negative_prompt });
  form.generate();
});
stage.addEventListener("example", (event) => {
  form.apply({ ...form.read(), prompt: detailOf(event) });
  form.generate();
});
if (navigator.platform.startsWith("Mac")) byId("generate-keys", HTMLElement).textContent = "⌘ ↵";
document.addEventListener("keydown", (event) => {
  const open = document.querySelector("dialog[open]");
  if (event.defaultPrevented || open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.generate();
  }
});

// --- finished images ------------------------------------------------------------------------------

/** @param {Shown} shown */
async function editImage({ job, image }) {
  if (!image) return;
  try {
    await startFrom(await fileOf(job, image));
  } catch (error) {
    form.showError("image", /** @type {Error} */ (error).message);
  }
}

/** @param {Shown} shown */
async function download({ job, image }) {
  if (!image) return;
  try {
    save(await fileOf(job, image));
  } catch (error) {
    tell(`The image could not be downloaded. ${/** @type {Error} */ (error).message}`);
  }
}

/**
 * Put the settings of an image into the form, and load the images that its request uploaded.
 * @param {Shown} shown
 * @returns {Promise<boolean>} False if an image of the request is missing.
 */
async function reuse({ job, image }) {
  const lacking = [];
  try {
    await putInputs(job);
  } catch {
    lacking.push(IMAGE);
  }
  if (job.operation === "edit" && !easel.file) lacking.push(IMAGE);
  await take(settingsOf(job, image), "The settings of this image are in the form", { lacking });
  return lacking.length === 0;
}

/**
 * Remove the image to edit if the request of a job had none.
 * @param {Job} job
 */
function removeOther(job) {
  if (easel.file && !job.inputs.some(({ name }) => name === "image")) removeImage();
}

/** @param {Job} job */
async function putInputs(job) {
  const files = await inputsOf(job);
  if (await putOnEasel(easel, job, files)) stage.setImage(true);
  const references = [...files].filter(([name]) => name.startsWith("image-"));
  extraImages.set(
    references.map(([, file]) => file),
    files.get("control") ?? null,
  );
}

/** @param {Shown} shown */
async function upscale({ job, image }) {
  if (!image) return;
  const body = new FormData();
  try {
    body.append("image", await fileOf(job, image));
    body.append("upscaler", String(form.further.upscaler ?? upscalers[0]));
    present(await jobs.submit({ path: "v1/images/upscales", body }));
    stage.showImage();
  } catch (error) {
    tell(`The image could not be upscaled. ${/** @type {Error} */ (error).message}`);
  }
}

/**
 * Put settings into the form and show a notice.
 * @param {Settings} settings
 * @param {string} what First part of the notice.
 * @param {{lacking?: string[], all?: boolean}} [how] `lacking`: images already known to be missing.
 *   `all`: replace all other settings, except prompt, seed and border.
 */
async function take(settings, what, { lacking = [], all = false } = {}) {
  taken += 1;
  const call = taken;
  form.clearErrors();
  // The border is set first, because the settings belong to an image with this border. Presets have
  // no border.
  if (easel.file && !all) border.expand = settings.expand ?? null;
  const unfit = all ? form.replace(settings) : form.apply(settings);
  const unsupported = await options.unsupported(form.model, Object.keys(form.further));
  // A later call has put other settings into the form.
  if (call !== taken) return;
  for (const name of unsupported) form.setFurther(name, undefined);
  const left = [...new Set([...unfit, ...lacking, ...unsupported.map(labelOf)])];
  const line = left.length ? `${what}, except for ${listed(left)}.` : `${what}.`;
  tell([line, ...form.adjusted].join(" "));
  if (NARROW.matches) scrollTo({ top: 0 });
}

compare.addEventListener("open", (event) => {
  const job = detailOf(event);
  viewer.open({ job, image: job.images[0] });
});
stage.addEventListener("open", (event) => viewer.open(detailOf(event)));
gallery.addEventListener("open", (event) => viewer.open(detailOf(event)));
viewer.addEventListener("favorite", async (event) => {
  const { job } = detailOf(event);
  try {
    await jobs.mark(job, !job.favorite);
    gallery.update(job);
    viewer.showMark();
  } catch (error) {
    viewer.showError(/** @type {Error} */ (error).message);
  }
});
for (const source of [stage, viewer]) {
  source.addEventListener("edit", (event) => editImage(detailOf(event)));
  source.addEventListener("download", (event) => download(detailOf(event)));
  source.addEventListener("reuse", (event) => reuse(detailOf(event)));
  source.addEventListener("upscale", (event) => upscale(detailOf(event)));
}

// --- the image to edit ----------------------------------------------------------------------------

/** @param {File} file */
async function startFrom(file) {
  form.clearErrors();
  try {
    const chooser = document.activeElement === byId("choose-image", HTMLElement);
    await easel.load(file);
    stage.setImage(true);
    if (chooser) byId("mask", HTMLElement).focus();
    // The Generate button covers the bottom of a narrow window, so the tools move to the top.
    byId("stage", HTMLElement).scrollIntoView({ block: NARROW.matches ? "start" : "nearest" });
  } catch (error) {
    form.showError("image", /** @type {Error} */ (error).message);
  }
}

/** @param {File} file */
async function readFrom(file) {
  const body = new FormData();
  try {
    body.append("image", await held(file));
    const { parameters, unread } = await api.post("v1/images/parameters", { body });
    if (parameters) await take(parameters, "The settings of this file are in the form", { lacking: unread });
    else tell(NO_SETTINGS);
  } catch (error) {
    const invalid = error instanceof ApiError && error.status === 400;
    tell(invalid ? NO_SETTINGS : /** @type {Error} */ (error).message);
  }
}

function onEasel() {
  const { file } = easel;
  byId("source", HTMLElement).hidden = !file;
  byId("source-empty", HTMLElement).hidden = Boolean(file);
  if (file) {
    byId("source-thumb", HTMLImageElement).src = easel.url;
    byId("source-name", HTMLElement).textContent = file.name;
    const { width, height } = easel.size;
    const { canvas } = border;
    const size = border.isThere ? ` → ${canvas.width} × ${canvas.height}` : "";
    const more = easel.hasMask ? `${size} · with a mask` : size;
    byId("source-note", HTMLElement).textContent = `${width} × ${height}${more}`;
  }
  byId("keep-mask", HTMLButtonElement).disabled = !easel.hasMask;
  form.setSource(sourceNow(), file ? border.expand : null);
  showCode();
}

function sourceNow() {
  if (!easel.file) return "none";
  if (easel.hasMask) return "mask";
  return border.isThere ? "border" : "image";
}

easel.addEventListener("change", () => {
  border.setImage(easel.size);
  onEasel();
});
border.addEventListener("change", onEasel);
byId("remove-image", HTMLButtonElement).addEventListener("click", () => {
  removeImage();
  byId("choose-image", HTMLButtonElement).focus();
});

function removeImage() {
  easel.unload();
  stage.setImage(false);
}

/**
 * @param {string} button
 * @param {string} input
 * @param {(file: File) => void} use
 */
function joinFileButton(button, input, use) {
  const field = byId(input, HTMLInputElement);
  byId(button, HTMLButtonElement).addEventListener("click", () => field.click());
  field.addEventListener("change", () => {
    const file = field.files?.[0];
    field.value = "";
    if (file) use(file);
  });
}

joinFileButton("choose-image", "image-file", startFrom);
joinFileButton("read-settings", "settings-file", readFrom);
joinFileButton("load-mask", "mask-file", async (file) => {
  form.clearErrors();
  try {
    await easel.loadMask(file);
  } catch (error) {
    form.showError("image", /** @type {Error} */ (error).message);
  }
});
acceptFiles({ edit: startFrom, read: readFrom });

// --- the settings as code -------------------------------------------------------------------------

function showCode() {
  const { images, control } = filesNow();
  code.show({
    settings: form.prompts?.length ? { ...form.read(), prompt: form.prompts[0] } : form.read(),
    images: images.map(({ name }) => name),
    mask: easel.hasMask,
    control: control?.name ?? null,
    key: api.hasKey || api.locked,
  });
}

async function saveMask() {
  const mask = await easel.mask();
  if (mask) save(mask);
}

code.addEventListener("save", saveMask);
byId("keep-mask", HTMLButtonElement).addEventListener("click", saveMask);
form.addEventListener("change", () => {
  showCode();
  showOptions();
});

// --- options without a field ----------------------------------------------------------------------

async function showOptions() {
  await options.show(form.model, form.further);
  form.setMaxima(options.schemas);
  loraTags.show(options.loras);
  compare.form.show(form.model, easel.file !== null);
}

presets.addEventListener("use", (event) => {
  const { name, settings } = detailOf(event);
  take(settings, `The preset ${name} is in the form`, { all: true });
});
options.addEventListener("set", (event) => {
  const { name, value } = detailOf(event);
  form.setFurther(name, value);
});
loraTags.addEventListener("use", (event) => {
  const chosen = /** @type {object[]} */ (form.further.lora ?? []);
  form.setFurther("lora", [...chosen, ...detailOf(event)]);
  options.open();
});
extraImages.addEventListener("change", () => {
  form.setExtra({
    control: extraImages.control !== null,
    references: extraImages.references.length > 0,
  });
});
for (const news of ["key", "locked"]) api.addEventListener(news, showCode);

// --- start ----------------------------------------------------------------------------------------

async function loadModels() {
  clearTimeout(modelsAgain);
  try {
    const { data } = await api.get("v1/models");
    options.forget();
    upscalers = (await api.get("v1/upscalers")).data.map((/** @type {{id: string}} */ one) => one.id);
    stage.canUpscale = viewer.canUpscale = upscalers.length > 0;
    const models = data.filter((model) => !model.alias_of);
    compare.form.models = models;
    form.setModels(models);
    stage.setModels(models.map((model) => model.id));
    setFilterModels(models.map((model) => model.id));
  } catch (error) {
    const { message } = /** @type {Error} */ (error);
    if (error instanceof ApiError && error.status !== 401) {
      const text = `The models could not be loaded. ${message} This page retries by itself; generate again when it shows a model.`;
      form.showError("model", text, { focus: form.wanted });
      modelsAgain = setTimeout(loadModels, MODELS_AGAIN_MS);
    } else if (form.wanted) {
      form.showError(null, message);
    }
  }
}

/** Load models, jobs and gallery. Called at the start and when the server responds again. */
async function start() {
  await loadModels();
  await jobs.refresh();
  cluster.load();
  if (!gallery.loaded) await gallery.load();
  await compare.restore();
  const mine = jobs.unfinished.filter((job) => jobs.isMine(job.id));
  const running = mine.find((job) => job.status !== "queued") ?? mine[0];
  const latest = gallery.entries.find((entry) => entry.image && jobs.isMine(entry.job.id))?.job;
  if (latest) form.setLastSeed(latest.parameters.seed);
  if (!stage.job) present(running ?? latest ?? null);
}

function begin() {
  form.clearTrouble();
  // The header of the page shows the problem. The page continues when the server responds again or
  // the user enters a key.
  start().catch(() => stage.show(stage.job));
}

/** @param {Event} event */
function detailOf(event) {
  return /** @type {CustomEvent} */ (event).detail;
}

api.addEventListener("connection", () => {
  stage.setReachable(api.reachable);
  if (api.reachable) begin();
});
// Without regular requests, the page would not notice that the server has stopped.
setInterval(() => !document.hidden && api.reachable && api.look(), HEARTBEAT_MS);
api.addEventListener("key", () => {
  // The jobs of one key are not those of another.
  jobs.clear();
  gallery.clear();
  compare.clear();
  viewer.close();
  stage.show(null);
  showQueue();
  begin();
});
begin();
