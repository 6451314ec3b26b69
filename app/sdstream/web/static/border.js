/**
 * The border to generate around the image. The user moves its four handles by mouse, pen, finger or
 * keys.
 *
 * The image shrinks on the screen as its border grows. While the user holds a handle, the image
 * keeps its size, so that nothing moves under the pointer.
 */

import { byId } from "./dom.js";

/** @typedef {"left" | "top" | "right" | "bottom"} Side */

/** Pixels of border. @typedef {Record<Side, number>} Sides */

/** @type {Side[]} */
const SIDES = ["left", "top", "right", "bottom"];
/** @type {Sides} */
const NONE = { left: 0, top: 0, right: 0, bottom: 0 };
const STEP = 8;
const FAR = 64;
/** The largest border of a side that the server accepts. */
const MOST = 4096;

/** The keys that move a handle outwards and inwards. @type {Record<Side, [string, string]>} */
const KEYS = {
  left: ["ArrowLeft", "ArrowRight"],
  top: ["ArrowUp", "ArrowDown"],
  right: ["ArrowRight", "ArrowLeft"],
  bottom: ["ArrowDown", "ArrowUp"],
};

const frame = byId("easel-frame", HTMLElement);
const sheet = byId("easel-sheet", HTMLElement);
const border = byId("border", HTMLElement);
const size = byId("border-size", HTMLElement);
const clear = byId("clear-border", HTMLButtonElement);

/** Fires "change" when the border changes. */
export class Border extends EventTarget {
  /** Size of the image in pixels. */
  #image = { width: 1, height: 1 };
  /** The border that the layout on the screen is made for. @type {Sides} */
  #laid = NONE;
  /** @type {Sides} */
  #sides = NONE;
  /** @type {{side: Side, from: number, before: number} | null} */
  #held = null;

  constructor() {
    super();
    for (const side of SIDES) {
      const handle = handleOf(side);
      handle.addEventListener("pointerdown", (event) => this.#grab(side, event));
      handle.addEventListener("pointermove", (event) => this.#drag(event));
      for (const end of ["pointerup", "pointercancel"]) {
        handle.addEventListener(end, () => this.#release());
      }
      handle.addEventListener("keydown", (event) => this.#key(side, event));
    }
    clear.addEventListener("click", () => {
      this.sides = NONE;
      handleOf("left").focus();
    });
  }

  /** True if there is a border. */
  get isThere() {
    return SIDES.some((side) => this.#sides[side] > 0);
  }

  get sides() {
    return this.#sides;
  }

  /** @param {Sides} sides */
  set sides(sides) {
    this.#sides = sides;
    this.#settle();
  }

  /** The API's `expand`: pixels of left, top, right and bottom; null without a border. */
  get expand() {
    return this.isThere ? SIDES.map((side) => this.#sides[side]) : null;
  }

  /** @param {number[] | null} expand */
  set expand(expand) {
    const [left, top, right, bottom] = expand ?? [0, 0, 0, 0];
    this.sides = { left, top, right, bottom };
  }

  /** Size of the image with its border, in pixels. */
  get canvas() {
    return canvasOf(this.#image, this.#sides);
  }

  /**
   * Set the size of another image, which has no border yet.
   * @param {{width: number, height: number}} image Size of the image in pixels.
   */
  setImage(image) {
    if (image === this.#image) return;
    this.#image = image;
    this.sides = NONE;
  }

  /**
   * @param {Side} side
   * @param {PointerEvent} event
   */
  #grab(side, event) {
    if (event.button > 0) return;
    event.preventDefault();
    const handle = handleOf(side);
    handle.focus({ preventScroll: true });
    handle.setPointerCapture(event.pointerId);
    this.#held = { side, from: placeOf(side, event), before: this.#sides[side] };
  }

  /** @param {PointerEvent} event */
  #drag(event) {
    if (!this.#held) return;
    const { side, from, before } = this.#held;
    const scale = this.#image.width / sheet.getBoundingClientRect().width;
    this.#set(side, before + (placeOf(side, event) - from) * scale);
    this.#draw();
  }

  #release() {
    if (!this.#held) return;
    this.#held = null;
    this.#settle();
  }

  /**
   * @param {Side} side
   * @param {KeyboardEvent} event
   */
  #key(side, event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const way = event.shiftKey ? FAR : STEP;
    const [outwards, inwards] = KEYS[side];
    const now = this.#sides[side];
    if (event.key === outwards) this.#set(side, now + way);
    else if (event.key === inwards) this.#set(side, now - way);
    else if (event.key === "PageUp") this.#set(side, now + FAR);
    else if (event.key === "PageDown") this.#set(side, now - FAR);
    else if (event.key === "Home") this.#set(side, 0);
    else return;
    event.preventDefault();
    this.#settle();
  }

  /**
   * @param {Side} side
   * @param {number} pixels
   */
  #set(side, pixels) {
    const whole = Math.round(pixels / STEP) * STEP;
    this.#sides = { ...this.#sides, [side]: Math.min(Math.max(whole, 0), MOST) };
  }

  /** Lay out the screen for the current border. */
  #settle() {
    this.#laid = this.#sides;
    const { width, height } = this.canvas;
    frame.style.setProperty("--ratio", String(width / height));
    sheet.style.left = percent(this.#laid.left, width);
    sheet.style.top = percent(this.#laid.top, height);
    sheet.style.width = percent(this.#image.width, width);
    sheet.style.height = percent(this.#image.height, height);
    this.#draw();
    this.dispatchEvent(new Event("change"));
  }

  /** Show the extent of the border, which may exceed the layout. */
  #draw() {
    const { width, height } = canvasOf(this.#image, this.#laid);
    for (const side of SIDES) {
      const whole = side === "left" || side === "right" ? width : height;
      border.style[side] = percent(this.#laid[side] - this.#sides[side], whole);
      const handle = handleOf(side);
      handle.setAttribute("aria-valuenow", String(this.#sides[side]));
      handle.setAttribute("aria-valuetext", `${this.#sides[side]} pixels`);
    }
    const now = this.canvas;
    size.textContent = this.isThere ? `${now.width} × ${now.height}` : "none";
    clear.disabled = !this.isThere;
    border.classList.toggle("there", this.isThere);
  }
}

/** @param {Side} side */
function handleOf(side) {
  return byId(`border-${side}`, HTMLElement);
}

/**
 * Position of a pointer along the direction of a side, in screen pixels; outwards is positive.
 * @param {Side} side
 * @param {PointerEvent} event
 */
function placeOf(side, event) {
  const { clientX: x, clientY: y } = event;
  return { left: -x, top: -y, right: x, bottom: y }[side];
}

/**
 * @param {{width: number, height: number}} image
 * @param {Sides} sides
 */
function canvasOf(image, sides) {
  return {
    width: sides.left + image.width + sides.right,
    height: sides.top + image.height + sides.bottom,
  };
}

/**
 * @param {number} part
 * @param {number} whole
 */
function percent(part, whole) {
  return `${(100 * part) / whole}%`;
}
