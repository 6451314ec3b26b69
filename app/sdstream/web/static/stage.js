/** The stage: shows a job's image and progress, with buttons to use the image. */

import { api, showImage } from "./api.js";
import { byId, focusStage, make } from "./dom.js";
import { isOver } from "./jobs.js";
import { nameOf, wasGenerated } from "./images.js";
import { counted, progressLine, remedy, shortened } from "./format.js";

/** @import {Job, JobImage} from "./jobs.js" */

const EXAMPLES = [
  "a red circle on a blue background",
  "three yellow stars",
  "a sunset over the sea",
  "snowy mountains at night",
];

const TITLE = document.title;
const TICK_MS = 1_000;

const welcome = byId("welcome", HTMLElement);
const easel = byId("easel", HTMLElement);
const work = byId("work", HTMLElement);
const views = byId("views", HTMLElement);
const viewCanvas = byId("view-canvas", HTMLButtonElement);
const viewGrid = byId("view-grid", HTMLButtonElement);
const viewImage = byId("view-image", HTMLButtonElement);
const frame = byId("frame", HTMLElement);
const large = byId("image", HTMLImageElement);
const enlarge = byId("enlarge", HTMLButtonElement);
const trouble = byId("trouble", HTMLElement);
const strip = byId("strip", HTMLElement);
const progress = byId("progress", HTMLElement);
const bar = byId("bar", HTMLProgressElement);
const status = byId("status", HTMLElement);
const cancel = byId("cancel", HTMLButtonElement);
const caption = byId("caption", HTMLElement);
const details = byId("details", HTMLElement);
const notes = byId("notes", HTMLElement);
const warnings = byId("warnings", HTMLElement);
const otherModels = byId("other-models-list", HTMLElement);
const actions = byId("actions", HTMLElement);

/** Matches the server's warnings about words and numbers that a small model was not trained on. */
const NOT_TRAINED = / does not know /;
const MOST_MODELS = 4;

/**
 * Fires these events:
 * - "example" with a prompt as detail
 * - "cancel" and "again" with a Job
 * - "model" with {job, model}
 * - "open", "edit", "reuse", "upscale" and "download" with {job, image}
 */
export class Stage extends EventTarget {
  /** @type {Job | null} */
  job = null;

  /** True if the server has an upscaler. */
  canUpscale = false;

  /** Index of the image that the user chose in the strip; -1 if the user chose none. */
  #picked = -1;
  #hasImage = false;
  #onCanvas = false;
  #hasGrid = false;
  #onGrid = false;
  /** Ids of the server's models. @type {string[]} */
  #models = [];

  constructor() {
    super();
    byId("examples", HTMLElement).append(
      ...EXAMPLES.map((text) =>
        make("li", {}, make("button", { type: "button", click: () => this.#begin(text) }, text)),
      ),
    );
    viewCanvas.addEventListener("click", () => this.showCanvas());
    viewImage.addEventListener("click", () => this.showImage());
    viewGrid.addEventListener("click", () => this.showGrid());
    cancel.addEventListener("click", () => this.#fire("cancel", this.job));
    enlarge.addEventListener("click", () => this.#fireImage("open"));
    byId("again", HTMLButtonElement).addEventListener("click", () => {
      focusStage();
      this.#fire("again", this.job);
    });
    byId("edit-this", HTMLButtonElement).addEventListener("click", () => this.#fireImage("edit"));
    byId("reuse", HTMLButtonElement).addEventListener("click", () => this.#fireImage("reuse"));
    byId("upscale-this", HTMLButtonElement).addEventListener("click", () => {
      focusStage();
      this.#fireImage("upscale");
    });
    byId("download", HTMLButtonElement).addEventListener("click", () => this.#fireImage("download"));
    setInterval(() => this.job && !isOver(this.job) && this.#tellProgress(this.job), TICK_MS);
  }

  /** True if the stage may show another job: its own job, if any, has ended. */
  get free() {
    return !this.job || isOver(this.job);
  }

  /**
   * Show a job, or the welcome text without a job. If the canvas is shown, it stays.
   * @param {Job | null} job
   */
  show(job) {
    this.job = job;
    this.#picked = -1;
    this.#turn(this.#onCanvas);
    this.update();
  }

  showCanvas() {
    this.#onGrid = false;
    this.#turn(true);
  }

  showImage() {
    this.#onGrid = false;
    this.#turn(false);
  }

  /** Offer the button that shows the grid. */
  addGrid() {
    this.#hasGrid = true;
    this.#turn(this.#onCanvas);
  }

  showGrid() {
    this.#hasGrid = this.#onGrid = true;
    this.#turn(false);
  }

  removeGrid() {
    this.#hasGrid = this.#onGrid = false;
    this.#turn(this.#onCanvas);
  }

  /**
   * Show the canvas if there is an image to edit; hide it otherwise.
   * @param {boolean} exists
   */
  setImage(exists) {
    this.#hasImage = exists;
    if (exists) this.#onGrid = false;
    this.#turn(exists);
  }

  /** @param {boolean} reachable True if the server responds. */
  setReachable(reachable) {
    byId("offline", HTMLElement).hidden = reachable;
    work.classList.toggle("stale", !reachable);
    if (this.job) this.#tellProgress(this.job);
  }

  /** @param {string[]} ids Ids of the server's models. */
  setModels(ids) {
    this.#models = ids;
    if (this.job) this.#showNotes(this.job);
  }

  /** Show the current state of the job. */
  update() {
    const { job } = this;
    document.title = titleOf(job);
    if (!job) return;
    const over = isOver(job);
    const shown = this.#shown();
    // The Cancel button is about to be hidden.
    if (over && document.activeElement === cancel) focusStage();
    work.style.setProperty("--ratio", String(ratioOf(job)));
    const empty = !this.#showFrame(job, shown) && over;
    this.#showTrouble(job, empty);
    this.#showStrip(job, shown);
    progress.hidden = empty || job.status === "completed";
    bar.hidden = cancel.hidden = over;
    this.#tellProgress(job);
    caption.textContent = shortened(job.parameters.prompt, 300);
    details.textContent = shown ? detailsOf(job, shown) : "";
    this.#showNotes(job);
    actions.hidden = !shown && !over;
    for (const id of ["edit-this", "download"]) byId(id, HTMLElement).hidden = !shown;
    byId("upscale-this", HTMLElement).hidden = !shown || !this.canUpscale;
    byId("reuse", HTMLElement).hidden = !wasGenerated(job);
  }

  /** @param {string} prompt */
  #begin(prompt) {
    focusStage();
    this.#fire("example", prompt);
  }

  /** @param {boolean} canvas */
  #turn(canvas) {
    this.#onCanvas = canvas && this.#hasImage;
    const other = this.#onCanvas || this.#onGrid;
    welcome.hidden = other || this.job !== null;
    easel.hidden = !this.#onCanvas;
    work.hidden = other || this.job === null;
    byId("grid", HTMLElement).hidden = !this.#onGrid;
    views.hidden = [this.#hasImage, this.job, this.#hasGrid].filter(Boolean).length < 2;
    viewCanvas.hidden = !this.#hasImage;
    viewImage.hidden = !this.job;
    viewGrid.hidden = !this.#hasGrid;
    viewGrid.setAttribute("aria-pressed", String(this.#onGrid));
    viewCanvas.setAttribute("aria-pressed", String(this.#onCanvas));
    viewImage.setAttribute("aria-pressed", String(!other));
  }

  /** @returns {JobImage | undefined} */
  #shown() {
    const images = this.job?.images ?? [];
    if (this.#picked >= 0) return images.find((image) => image.index === this.#picked);
    // While the next image is generated, the stage shows its preview.
    const generating = this.job && !isOver(this.job) && images.length < this.job.parameters.n;
    return generating ? undefined : images[0];
  }

  /**
   * @param {Job} job
   * @param {JobImage | undefined} shown
   * @returns {boolean} True if an image or a preview is shown.
   */
  #showFrame(job, shown) {
    const failed = job.status === "failed";
    const unfinished = failed ? undefined : (job.preview?.url ?? job.images.at(-1)?.url);
    const source = shown?.url ?? unfinished;
    large.hidden = !source;
    large.alt = shown ? nameOf(job) : `Unfinished: ${nameOf(job)}`;
    if (source) showImage(large, source);
    enlarge.disabled = !shown;
    frame.classList.toggle("waiting", !source && !isOver(job));
    return Boolean(source);
  }

  /**
   * @param {Job} job
   * @param {boolean} empty True if the job has ended without an image.
   */
  #showTrouble(job, empty) {
    const failed = job.status === "failed";
    enlarge.hidden = empty;
    trouble.hidden = !empty;
    byId("trouble-title", HTMLElement).textContent = failed
      ? "The image could not be generated."
      : "This job has no image.";
    byId("trouble-text", HTMLElement).textContent = job.error?.message ?? "";
    byId("trouble-next", HTMLElement).textContent = failed ? remedy(job.error?.reason) : "";
    byId("again", HTMLElement).hidden = !wasGenerated(job);
  }

  /**
   * Show the warnings of a job. If the model does not know a part of the prompt, offer the other models.
   * @param {Job} job
   */
  #showNotes(job) {
    const others = job.warnings.some((text) => NOT_TRAINED.test(text))
      ? this.#models.filter((id) => id !== job.parameters.model).slice(0, MOST_MODELS)
      : [];
    const told = JSON.stringify([job.id, job.warnings, others]);
    if (notes.dataset.told === told) return;
    // Unchanged notes are not rebuilt, since a replaced button loses the focus.
    notes.dataset.told = told;
    notes.hidden = job.warnings.length === 0;
    warnings.replaceChildren(...job.warnings.map((text) => make("li", {}, text)));
    byId("other-models", HTMLElement).hidden = others.length === 0;
    otherModels.replaceChildren(
      ...others.map((model) =>
        make("button", { type: "button", class: "link", click: () => this.#fire("model", { job, model }) }, model),
      ),
    );
  }

  /**
   * @param {Job} job
   * @param {JobImage | undefined} shown
   */
  #showStrip(job, shown) {
    const count = job.parameters.n;
    // Once the job has ended, the strip has only the images that were generated.
    const filled = isOver(job) ? job.images.length : count;
    strip.hidden = filled < 2;
    if (strip.hidden) return;
    while (strip.children.length > count) strip.lastElementChild?.remove();
    while (strip.children.length < count) strip.append(this.#stripItem(strip.children.length));
    for (let index = 0; index < count; index += 1) {
      const image = job.images.find((candidate) => candidate.index === index);
      const button = /** @type {HTMLButtonElement} */ (strip.children[index].firstElementChild);
      const thumb = /** @type {HTMLImageElement} */ (button.firstElementChild);
      const generating = index === job.index && !isOver(job);
      const source = image?.url ?? (generating ? job.preview?.url : undefined);
      thumb.hidden = !source;
      if (source) showImage(thumb, source);
      strip.children[index].toggleAttribute("hidden", isOver(job) && !image);
      button.disabled = !image && !generating;
      const current = image ? image === shown : generating && !shown;
      button.setAttribute("aria-current", String(current));
      button.dataset.generating = String(generating && !image);
    }
  }

  /** @param {number} index */
  #stripItem(index) {
    const pick = () => {
      const finished = this.job?.images.some((image) => image.index === index);
      this.#picked = finished ? index : -1;
      this.update();
    };
    const label = `Image ${index + 1}`;
    return make(
      "li",
      {},
      make("button", { type: "button", "aria-label": label, click: pick }, make("img", { alt: "" })),
    );
  }

  /** @param {Job} job */
  #tellProgress(job) {
    const lost = !api.reachable && !isOver(job);
    const line = lost ? "Waiting for the server" : progressLine(job);
    if (status.textContent !== line) status.textContent = line;
    const moving = job.status === "running" || job.status === "loading";
    if (moving && !lost) bar.value = job.progress;
    // A progress bar without a value is indeterminate.
    else bar.removeAttribute("value");
  }

  /**
   * @param {string} name
   * @param {unknown} detail
   */
  #fire(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  /** @param {string} name */
  #fireImage(name) {
    this.#fire(name, { job: this.job, image: this.#shown() });
  }
}

/** @param {Job | null} job */
function titleOf(job) {
  return job?.status === "running" ? `${Math.floor(job.progress)} % · ${TITLE}` : TITLE;
}

/**
 * @param {Job} job
 * @param {JobImage} image
 */
function detailsOf(job, image) {
  const size = `${image.width} × ${image.height}`;
  return [size, counted(job.parameters.sample_steps, "step"), `seed ${image.seed}`].join(" · ");
}

/** @param {Job} job */
function ratioOf(job) {
  const [width, height] = (job.parameters.size ?? "1x1").split("x").map(Number);
  return width / height || 1;
}
