/**
 * The easel: the image to edit and its mask, which the user paints by mouse, pen, finger or keys.
 *
 * The mask is a list of strokes in pixels of the image. It is painted twice: as stripes over the
 * image, at the resolution of the screen, and in white on black for the server.
 */

import { say } from "./announce.js";
import { byId, held } from "./dom.js";
import { readMask } from "./mask-file.js";
import { Zoom } from "./zoom.js";

/** @import {MaskMode} from "./mask-file.js" */

/**
 * A stroke of the brush or the eraser, or a mask from a file.
 * @typedef {{erase: boolean, radius: number, points: [number, number][], sheet?: OffscreenCanvas}}
 *   Stroke
 */

/** Paints of the brush and of the eraser. @typedef {{paint: string | CanvasPattern, erase: string | null}} Look */

const IMAGE_TYPES = ["png", "jpeg", "webp", "gif", "bmp", "avif"].map((kind) => `image/${kind}`);
const PEN_ERASER = 32;
const SMALL_MOVE = 0.02;
const LARGE_MOVE = 0.1;
const STRIPE = 5;
/** Maximum number of pixels of one side of the canvas on the screen. */
const FINEST = 4096;

const image = byId("easel-image", HTMLImageElement);
const canvas = byId("mask", HTMLCanvasElement);
const nib = byId("nib", HTMLElement);
const keysHelp = byId("mask-keys", HTMLElement);
const brushSize = byId("brush-size", HTMLInputElement);
const brushButton = byId("brush", HTMLButtonElement);
const eraserButton = byId("eraser", HTMLButtonElement);
const undoButton = byId("undo", HTMLButtonElement);
const redoButton = byId("redo", HTMLButtonElement);
const clearButton = byId("clear-mask", HTMLButtonElement);

/** Fires "change" when the image or the mask changes. */
export class Easel extends EventTarget {
  /** The image as it will be sent. @type {File | null} */
  file = null;
  /** Size of the image in pixels. */
  size = { width: 1, height: 1 };

  /** @type {readonly Stroke[]} */
  #strokes = [];
  /** The strokes before each change. @type {(readonly Stroke[])[]} */
  #past = [];
  /** The strokes before each undo. @type {(readonly Stroke[])[]} */
  #future = [];
  /** The stroke that is being painted. @type {Stroke | null} */
  #stroke = null;
  #erasing = false;
  /** Position of the brush, in pixels of the image. @type {[number, number]} */
  #place = [0, 0];
  #zoom = new Zoom();

  constructor() {
    super();
    this.#zoom.addEventListener("change", () => this.#fit());
    this.#zoom.addEventListener("pinch", () => this.#drop());
    brushButton.addEventListener("click", () => this.#choose(false));
    eraserButton.addEventListener("click", () => this.#choose(true));
    undoButton.addEventListener("click", () => this.#undo());
    redoButton.addEventListener("click", () => this.#redo());
    clearButton.addEventListener("click", () => this.#clear());
    brushSize.addEventListener("input", () => this.#showNib(this.#place));
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => this.#lift());
    }
    canvas.addEventListener("pointerleave", () => {
      nib.hidden = document.activeElement !== canvas;
    });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("focus", () => this.#showNib(this.#place));
    canvas.addEventListener("blur", () => {
      this.#lift();
      nib.hidden = keysHelp.hidden = true;
    });
    // The help appears only after a key press. It moves the canvas, which must not happen under a
    // pointer.
    canvas.addEventListener("keyup", () => {
      keysHelp.hidden = false;
    });
    new ResizeObserver(() => this.#fit()).observe(canvas);
  }

  /** True if there is a stroke of the brush or a loaded mask, even if the eraser has removed it. */
  get hasMask() {
    return this.#strokes.some((stroke) => !stroke.erase);
  }

  /** URL of the image, for a thumbnail. */
  get url() {
    return image.src;
  }

  /**
   * Load an image.
   * @param {File} chosen
   * @returns {Promise<void>} Rejected if this browser cannot read it.
   */
  async load(chosen) {
    const file = await held(chosen);
    const url = URL.createObjectURL(file);
    const probe = new Image();
    probe.src = url;
    try {
      await probe.decode();
    } catch {
      URL.revokeObjectURL(url);
      throw new Error("This file is not an image that can be read.");
    }
    this.#release();
    image.src = url;
    const { naturalWidth: width, naturalHeight: height } = probe;
    this.size = { width, height };
    this.file = IMAGE_TYPES.includes(file.type) ? file : await asPng(probe, file.name);
    this.#place = [width / 2, height / 2];
    this.#choose(false);
    this.#reset();
  }

  /**
   * Replace the mask with one from a file.
   * @param {Blob} file
   * @param {{mode?: MaskMode, inverted?: boolean}} [reading]
   * @returns {Promise<void>} Rejected if the file is not an image.
   */
  async loadMask(file, reading) {
    const sheet = await readMask(file, this.size, reading);
    this.#commit([{ erase: false, radius: 0, points: [], sheet }]);
    this.#show(this.#strokes);
  }

  /** Remove the image. */
  unload() {
    this.#release();
    this.file = null;
    this.#reset();
  }

  /**
   * The mask as a PNG of the image's size, white where the image may change.
   * @returns {Promise<File | null>} Null if nothing is painted.
   */
  async mask() {
    if (!this.hasMask) return null;
    const sheet = new OffscreenCanvas(this.size.width, this.size.height);
    const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d"));
    pen.fillRect(0, 0, sheet.width, sheet.height);
    for (const stroke of this.#strokes) draw(pen, stroke, { paint: "#fff", erase: "#000" });
    const { data } = pen.getImageData(0, 0, sheet.width, sheet.height);
    if (!data.some((value, at) => at % 4 === 0 && value >= 128)) return null;
    const blob = await sheet.convertToBlob({ type: "image/png" });
    return new File([blob], "mask.png", { type: "image/png" });
  }

  #release() {
    if (image.src) URL.revokeObjectURL(image.src);
    image.removeAttribute("src");
  }

  get #radius() {
    const share = Number(brushSize.value) / 100;
    return Math.max(0.5, (share * Math.min(this.size.width, this.size.height)) / 2);
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if ((event.button > 0 && !(event.buttons & PEN_ERASER)) || this.#zoom.pinching) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    this.#begin(this.#placeOf(event), this.#erasing || Boolean(event.buttons & PEN_ERASER));
  }

  /** @param {PointerEvent} event */
  #move(event) {
    this.#showNib(this.#placeOf(event));
    if (!this.#stroke || !event.buttons || this.#zoom.pinching) return;
    // A fast pointer moves further than the width of the brush between two frames.
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.#extend(this.#placeOf(part));
  }

  /**
   * @param {[number, number]} place
   * @param {boolean} erase
   */
  #begin(place, erase) {
    this.#stroke = { erase, radius: this.#radius, points: [place] };
    this.#commit([...this.#strokes, this.#stroke]);
    this.#showNib(place);
    draw(this.#pen(), this.#stroke, this.#look());
  }

  /** @param {[number, number]} place */
  #extend(place) {
    const stroke = this.#stroke;
    if (!stroke) return;
    const last = stroke.points[stroke.points.length - 1];
    stroke.points.push(place);
    draw(this.#pen(), { ...stroke, points: [last, place] }, this.#look());
  }

  /** Remove the current stroke. A second finger has touched the canvas, so the user is zooming. */
  #drop() {
    const stroke = this.#stroke;
    if (!stroke) return;
    this.#past.pop();
    this.#show(this.#strokes.filter((one) => one !== stroke));
  }

  #lift() {
    if (!this.#stroke) return;
    this.#stroke = null;
    this.#changed();
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const key = event.ctrlKey || event.metaKey ? event.key.toLowerCase() : "";
    if (key === "y" || (key === "z" && event.shiftKey)) this.#redo();
    else if (key === "z") this.#undo();
    else if (event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key.startsWith("Arrow")) this.#step(event.key, event.shiftKey);
    else if (event.key === " ") this.#toggle();
    else if (event.key === "[" || event.key === "]") this.#resize(event.key === "]" ? 2 : -2);
    else if (event.key === "b" || event.key === "e") this.#choose(event.key === "e");
    else return;
    event.preventDefault();
  }

  /**
   * @param {string} key
   * @param {boolean} far
   */
  #step(key, far) {
    const { width, height } = this.size;
    const way = (far ? LARGE_MOVE : SMALL_MOVE) * Math.min(width, height);
    const dx = { ArrowLeft: -way, ArrowRight: way }[key] ?? 0;
    const dy = { ArrowUp: -way, ArrowDown: way }[key] ?? 0;
    this.#place = [within(this.#place[0] + dx, width), within(this.#place[1] + dy, height)];
    this.#showNib(this.#place);
    this.#extend(this.#place);
    const box = nib.getBoundingClientRect();
    this.#zoom.reveal(box.left + box.width / 2, box.top + box.height / 2);
  }

  #toggle() {
    const across = Math.round((this.#place[0] / this.size.width) * 100);
    const down = Math.round((this.#place[1] / this.size.height) * 100);
    const where = `${across} percent across, ${down} percent down`;
    if (this.#stroke) {
      this.#lift();
      say(`Lifted at ${where}`);
    } else {
      this.#begin(this.#place, this.#erasing);
      say(`${this.#erasing ? "Eraser" : "Brush"} down at ${where}`);
    }
  }

  /** @param {number} change */
  #resize(change) {
    brushSize.value = String(Number(brushSize.value) + change);
    this.#showNib(this.#place);
  }

  /** @param {boolean} erasing */
  #choose(erasing) {
    this.#erasing = erasing;
    brushButton.setAttribute("aria-pressed", String(!erasing));
    eraserButton.setAttribute("aria-pressed", String(erasing));
  }

  /**
   * Set the strokes; the change can be undone.
   * @param {readonly Stroke[]} strokes
   */
  #commit(strokes) {
    this.#past.push(this.#strokes);
    this.#future = [];
    this.#strokes = strokes;
  }

  #undo() {
    this.#go(this.#past, this.#future);
  }

  #redo() {
    this.#go(this.#future, this.#past);
  }

  /**
   * Restore the newest state of one list, and add the current state to the other.
   * @param {(readonly Stroke[])[]} from
   * @param {(readonly Stroke[])[]} to
   */
  #go(from, to) {
    const strokes = from.pop();
    if (!strokes) return;
    to.push(this.#strokes);
    this.#show(strokes);
  }

  #clear() {
    this.#commit([]);
    this.#show([]);
  }

  /** Start without strokes, for another image. */
  #reset() {
    this.#past = [];
    this.#future = [];
    this.#zoom.reset();
    this.#show([]);
  }

  /** @param {readonly Stroke[]} strokes */
  #show(strokes) {
    this.#stroke = null;
    this.#strokes = strokes;
    this.#redraw();
    this.#changed();
  }

  /** Adapt the resolution of the canvas to its size on the screen. */
  #fit() {
    if (!canvas.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    const finest = FINEST / Math.max(width, height);
    const fine = Math.min(devicePixelRatio * this.#zoom.scale, finest);
    canvas.width = Math.round(width * fine);
    canvas.height = Math.round(height * fine);
    this.#redraw();
  }

  #redraw() {
    const pen = this.#pen();
    pen.clearRect(0, 0, this.size.width, this.size.height);
    const look = this.#look();
    for (const stroke of this.#strokes) draw(pen, stroke, look);
  }

  /** The context of the canvas, scaled to pixels of the image. */
  #pen() {
    const pen = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const { width, height } = this.size;
    pen.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    return pen;
  }

  /**
   * Light and dark stripes, which are visible on every image.
   * @returns {Look}
   */
  #look() {
    const stripes = /** @type {CanvasPattern} */ (this.#pen().createPattern(tile(), "repeat"));
    const scale = (this.size.width / canvas.clientWidth) / this.#zoom.scale;
    stripes.setTransform(new DOMMatrix().scale(scale));
    return { paint: stripes, erase: null };
  }

  /**
   * Position of a pointer, in pixels of the image.
   * @param {PointerEvent} event
   * @returns {[number, number]}
   */
  #placeOf(event) {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) / box.width) * this.size.width,
      ((event.clientY - box.top) / box.height) * this.size.height,
    ];
  }

  #changed() {
    undoButton.disabled = this.#past.length === 0;
    redoButton.disabled = this.#future.length === 0;
    clearButton.disabled = this.#strokes.length === 0;
    this.dispatchEvent(new Event("change"));
  }

  /** @param {[number, number]} place */
  #showNib(place) {
    this.#place = place;
    nib.hidden = false;
    const { width, height } = this.size;
    nib.style.left = `${(100 * place[0]) / width}%`;
    nib.style.top = `${(100 * place[1]) / height}%`;
    nib.style.width = `${(200 * this.#radius) / width}%`;
  }
}

/**
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} target
 * @param {Stroke} stroke
 * @param {Look} look Without a paint for the eraser, erasing makes the canvas transparent.
 */
function draw(target, stroke, look) {
  if (stroke.sheet) {
    drawSheet(target, stroke.sheet, look.paint);
    return;
  }
  const [first, ...rest] = stroke.points;
  target.save();
  if (stroke.erase && look.erase === null) target.globalCompositeOperation = "destination-out";
  target.fillStyle = target.strokeStyle = (stroke.erase && look.erase) || look.paint;
  target.lineWidth = stroke.radius * 2;
  target.lineCap = target.lineJoin = "round";
  // A line without length paints nothing, so a single press needs a disc.
  target.beginPath();
  target.arc(...first, stroke.radius, 0, 2 * Math.PI);
  target.fill();
  target.beginPath();
  target.moveTo(...first);
  for (const point of rest) target.lineTo(...point);
  target.stroke();
  target.restore();
}

/**
 * Paint a mask that comes from a file.
 * @param {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} target
 * @param {OffscreenCanvas} mask
 * @param {string | CanvasPattern} paint
 */
function drawSheet(target, mask, paint) {
  const sheet = new OffscreenCanvas(target.canvas.width, target.canvas.height);
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d"));
  pen.setTransform(target.getTransform());
  pen.imageSmoothingEnabled = false;
  pen.drawImage(mask, 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = paint;
  pen.fillRect(0, 0, mask.width, mask.height);
  target.save();
  target.resetTransform();
  target.drawImage(sheet, 0, 0);
  target.restore();
}

/** The tile of the pattern: a dark and a light stripe. */
function tile() {
  const sheet = new OffscreenCanvas(2 * STRIPE, 2 * STRIPE);
  const pen = /** @type {OffscreenCanvasRenderingContext2D} */ (sheet.getContext("2d"));
  const style = getComputedStyle(canvas);
  pen.fillStyle = style.getPropertyValue("--mask-dark");
  pen.fillRect(0, 0, sheet.width, sheet.height);
  pen.strokeStyle = style.getPropertyValue("--mask-light");
  pen.lineWidth = STRIPE * Math.SQRT1_2;
  pen.beginPath();
  for (const shift of [-2 * STRIPE, 0, 2 * STRIPE]) {
    pen.moveTo(shift - STRIPE, 3 * STRIPE);
    pen.lineTo(shift + 3 * STRIPE, -STRIPE);
  }
  pen.stroke();
  return sheet;
}

/**
 * @param {number} value
 * @param {number} end
 */
function within(value, end) {
  return Math.min(Math.max(value, 0), end);
}

/**
 * Convert an image to PNG, because the server cannot read its format.
 * @param {HTMLImageElement} decoded
 * @param {string} name
 */
async function asPng(decoded, name) {
  const sheet = new OffscreenCanvas(decoded.naturalWidth, decoded.naturalHeight);
  sheet.getContext("2d")?.drawImage(decoded, 0, 0);
  const blob = await sheet.convertToBlob({ type: "image/png" });
  return new File([blob], `${name}.png`, { type: "image/png" });
}
