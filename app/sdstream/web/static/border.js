/**
 * The border around the image on the easel, which is painted anew: its four edges are dragged outwards
 * by mouse, pen or finger, or moved by the arrow keys.
 */

import { byId } from "./dom.js";

/** @typedef {"left" | "top" | "right" | "bottom"} Side */
/** Pixels of the image. @typedef {Record<Side, number>} Sides */

const SIDES = /** @type {Side[]} */ (["left", "top", "right", "bottom"]);
const LARGEST = 2048;
/** Pixels that the border grows by. */
const STEP = 8;
const LARGE_STEP = 64;

const frame = byId("easel-frame", HTMLElement);
const inner = byId("easel-inner", HTMLElement);

/** Fires "change" when it is another one. */
export class Border extends EventTarget {
  /** @type {Sides} */
  #sides = { left: 0, top: 0, right: 0, bottom: 0 };
  /** Of the image, in pixels. */
  #size = { width: 1, height: 1 };

  constructor() {
    super();
    for (const side of SIDES) {
      const edge = byId(`edge-${side}`, HTMLElement);
      edge.addEventListener("pointerdown", (event) => this.#drag(edge, side, event));
      edge.addEventListener("keydown", (event) => this.#key(side, event));
    }
  }

  /** Pixels on each side, as the API has them; null for no border. */
  get value() {
    const sides = SIDES.map((side) => this.#sides[side]);
    return sides.some(Boolean) ? sides : null;
  }

  /**
   * Begin anew around an image.
   * @param {{width: number, height: number}} size
   */
  surround(size) {
    this.#size = size;
    this.#sides = { left: 0, top: 0, right: 0, bottom: 0 };
    this.#show();
  }

  /**
   * @param {HTMLElement} edge
   * @param {Side} side
   * @param {PointerEvent} event
   */
  #drag(edge, side, event) {
    if (event.button > 0) return;
    event.preventDefault();
    edge.focus({ preventScroll: true });
    edge.setPointerCapture(event.pointerId);
    const across = side === "left" || side === "right";
    const outwards = side === "left" || side === "top" ? -1 : 1;
    // As at the beginning: the frame shrinks while the border grows.
    const scale = this.#whole.width / frame.clientWidth;
    const [begun, start] = [this.#sides[side], across ? event.clientX : event.clientY];
    /** @param {PointerEvent} moved */
    const move = (moved) => {
      const way = (across ? moved.clientX : moved.clientY) - start;
      this.#set(side, begun + outwards * way * scale);
    };
    const end = new AbortController();
    edge.addEventListener("pointermove", move, { signal: end.signal });
    for (const name of ["pointerup", "pointercancel"]) {
      edge.addEventListener(name, () => end.abort(), { signal: end.signal });
    }
  }

  /**
   * @param {Side} side
   * @param {KeyboardEvent} event
   */
  #key(side, event) {
    const outwards = side === "left" || side === "top" ? ["ArrowLeft", "ArrowUp"] : ["ArrowRight", "ArrowDown"];
    const step = event.shiftKey ? LARGE_STEP : STEP;
    if (event.key === "Home") this.#set(side, 0);
    else if (outwards.includes(event.key)) this.#set(side, this.#sides[side] + step);
    else if (event.key.startsWith("Arrow")) this.#set(side, this.#sides[side] - step);
    else return;
    event.preventDefault();
  }

  /**
   * @param {Side} side
   * @param {number} pixels
   */
  #set(side, pixels) {
    const whole = Math.min(LARGEST, Math.max(0, Math.round(pixels / STEP) * STEP));
    if (whole === this.#sides[side]) return;
    this.#sides[side] = whole;
    this.#show();
    this.dispatchEvent(new Event("change"));
  }

  /** The image with its border, in pixels. */
  get #whole() {
    const { left, top, right, bottom } = this.#sides;
    const { width, height } = this.#size;
    return { width: left + width + right, height: top + height + bottom };
  }

  #show() {
    const { width, height } = this.#whole;
    const { left, top } = this.#sides;
    frame.style.setProperty("--ratio", String(width / height));
    inner.style.left = `${(100 * left) / width}%`;
    inner.style.top = `${(100 * top) / height}%`;
    inner.style.width = `${(100 * this.#size.width) / width}%`;
    inner.style.height = `${(100 * this.#size.height) / height}%`;
    for (const side of SIDES) {
      const edge = byId(`edge-${side}`, HTMLElement);
      edge.setAttribute("aria-valuenow", String(this.#sides[side]));
      edge.setAttribute("aria-valuetext", `${this.#sides[side]} pixels`);
    }
  }
}
