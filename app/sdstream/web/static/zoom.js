/**
 * Zooms the canvas by wheel, keys, buttons, and two fingers.
 *
 * The frame with the image is scaled and moved within its container, `room`, which clips it.
 */

import { byId } from "./dom.js";

const MOST = 8;
const STEP = 1.25;
/** Pixels that one press of an arrow key moves the image. */
const PAN = 60;
/** Pixels of wheel movement that double the scale. */
const DOUBLING = 400;
const MIDDLE_BUTTON = 1;

const frame = byId("easel-frame", HTMLElement);
const room = byId("easel-room", HTMLElement);
const canvas = byId("mask", HTMLCanvasElement);
const output = byId("zoom", HTMLElement);

/** Fires "change" when the scale changes, and "pinch" when a second finger touches the canvas. */
export class Zoom extends EventTarget {
  scale = 1;
  #x = 0;
  #y = 0;
  /** Fingers on the canvas: pointer id -> place. @type {Map<number, {x: number, y: number}>} */
  #fingers = new Map();
  /** Last place of a pointer with the middle button down. @type {{x: number, y: number} | null} */
  #held = null;

  constructor() {
    super();
    byId("zoom-in", HTMLElement).addEventListener("click", () => this.#zoom(STEP, middle()));
    byId("zoom-out", HTMLElement).addEventListener("click", () => this.#zoom(1 / STEP, middle()));
    byId("zoom-reset", HTMLElement).addEventListener("click", () => this.reset());
    room.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    room.addEventListener("pointerdown", (event) => this.#down(event), { capture: true });
    room.addEventListener("pointermove", (event) => this.#move(event), { capture: true });
    for (const end of ["pointerup", "pointercancel"]) {
      room.addEventListener(end, (event) => this.#up(/** @type {PointerEvent} */ (event)), { capture: true });
    }
  }

  /** True while two fingers are on the canvas; they paint nothing. */
  get pinching() {
    return this.#fingers.size > 1;
  }

  reset() {
    this.#set(1, 0, 0);
  }

  /**
   * Move the image so that a point comes into view.
   * @param {number} x
   * @param {number} y
   */
  reveal(x, y) {
    if (this.scale === 1) return;
    const box = room.getBoundingClientRect();
    const dx = x < box.left ? box.left - x : Math.min(0, box.right - x);
    const dy = y < box.top ? box.top - y : Math.min(0, box.bottom - y);
    if (dx || dy) this.#set(this.scale, this.#x + dx, this.#y + dy);
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    // If the canvas does not have the focus, the wheel scrolls the page as usual.
    const wanted = event.ctrlKey || event.metaKey || document.activeElement === canvas;
    if (!wanted) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.#zoom(2 ** ((-event.deltaY * lines) / DOUBLING), event);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const arrows = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] };
    if (event.ctrlKey || event.metaKey) return;
    if (event.altKey) {
      if (!(event.key in arrows)) return;
      const [dx, dy] = arrows[/** @type {"ArrowUp"} */ (event.key)];
      this.#set(this.scale, this.#x + dx, this.#y + dy);
    } else if (event.key === "+" || event.key === "=") this.#zoom(STEP, middle());
    else if (event.key === "-") this.#zoom(1 / STEP, middle());
    else if (event.key === "0") this.reset();
    else return;
    event.preventDefault();
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (event.button === MIDDLE_BUTTON) {
      event.preventDefault();
      room.setPointerCapture(event.pointerId);
      this.#held = placeOf(event);
    }
    if (event.pointerType !== "touch" || !canvas.contains(/** @type {Node} */ (event.target))) return;
    this.#fingers.set(event.pointerId, placeOf(event));
    if (this.pinching) {
      event.stopPropagation();
      this.dispatchEvent(new Event("pinch"));
    }
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (this.#held) {
      const now = placeOf(event);
      this.#set(this.scale, this.#x + now.x - this.#held.x, this.#y + now.y - this.#held.y);
      this.#held = now;
    }
    if (!this.#fingers.has(event.pointerId)) return;
    const before = [...this.#fingers.values()];
    this.#fingers.set(event.pointerId, placeOf(event));
    if (!this.pinching) return;
    event.stopPropagation();
    const after = [...this.#fingers.values()];
    const [from, to] = [between(before), between(after)];
    this.#set(this.scale, this.#x + to.x - from.x, this.#y + to.y - from.y);
    this.#zoom(to.distance / Math.max(1, from.distance), { clientX: to.x, clientY: to.y });
  }

  /** @param {PointerEvent} event */
  #up(event) {
    this.#held = null;
    this.#fingers.delete(event.pointerId);
  }

  /**
   * @param {number} factor
   * @param {{clientX: number, clientY: number}} at The point that does not move.
   */
  #zoom(factor, at) {
    const scale = Math.min(Math.max(this.scale * factor, 1), MOST);
    const box = frame.getBoundingClientRect();
    const grown = scale / this.scale - 1;
    this.#set(
      scale,
      this.#x - (at.clientX - box.left) * grown,
      this.#y - (at.clientY - box.top) * grown,
    );
  }

  /**
   * @param {number} scale
   * @param {number} x
   * @param {number} y
   */
  #set(scale, x, y) {
    const changed = scale !== this.scale;
    this.scale = scale;
    // The image always covers the area that it has without zoom.
    this.#x = Math.min(0, Math.max(x, frame.offsetWidth * (1 - scale)));
    this.#y = Math.min(0, Math.max(y, frame.offsetHeight * (1 - scale)));
    frame.style.transform = scale === 1 ? "" : `translate(${this.#x}px, ${this.#y}px) scale(${scale})`;
    room.classList.toggle("zoomed", scale > 1);
    output.textContent = `${Math.round(scale * 100)} %`;
    if (changed) this.dispatchEvent(new Event("change"));
  }
}

/** @param {PointerEvent} event */
function placeOf(event) {
  return { x: event.clientX, y: event.clientY };
}

/** The midpoint of two places and their distance. @param {{x: number, y: number}[]} places */
function between([a, b]) {
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, distance: Math.hypot(a.x - b.x, a.y - b.y) };
}

/** The middle of the visible part. */
function middle() {
  const box = room.getBoundingClientRect();
  return { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2 };
}
