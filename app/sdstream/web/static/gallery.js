/**
 * The gallery: finished images, with search, selection and keyboard navigation.
 *
 * There may be thousands of images, so only tiles near the visible part are elements. The list has
 * the height of all tiles, and each element is moved to its position.
 */

import { api, ApiError, showImage } from "./api.js";
import { byId, focusStage, icon, make } from "./dom.js";
import { shortened } from "./format.js";
import { filterQuery, filtersSet, matches, onFilter } from "./gallery-filter.js";
import { nameOf } from "./images.js";

/** @import {Job, JobImage} from "./jobs.js" */

/** An image, or a job that ended without one. @typedef {{job: Job, image: JobImage | null}} Entry */

const PAGE = 100;
/** Minimum width of a tile and gap between tiles, in pixels. */
const TILE = 104;
const GAP = 8;
/** Rows of tiles that exist as elements above and below the visible part. */
const SPARE_ROWS = 4;

const tiles = byId("tiles", HTMLElement);
const more = byId("gallery-more", HTMLButtonElement);
const empty = byId("gallery-empty", HTMLElement);
const problem = byId("gallery-error", HTMLElement);
const count = byId("gallery-count", HTMLElement);

/**
 * Fires "open" with an Entry, "delete" with the Entries that the user wants to delete, and
 * "select" when the selection changes.
 */
export class Gallery extends EventTarget {
  /** The loaded entries, newest first. @type {Entry[]} */
  entries = [];
  /** True once the newest images are loaded. */
  loaded = false;
  /** True if a click selects an image instead of opening it. */
  #selecting = false;
  /** @type {Set<string>} */
  #selected = new Set();
  /** Place of the tile that the keys act on. */
  #current = 0;
  /** Place where a range of selected tiles begins. */
  #anchor = 0;
  #last = "";
  #hasMore = false;
  /** @type {Promise<void> | null} */
  #loading = null;
  /** Number of the current list; responses for an earlier list are ignored. */
  #generation = 0;
  /** Key of an entry -> its tile, if the tile is an element. @type {Map<string, HTMLElement>} */
  #shown = new Map();
  #columns = 1;
  #side = TILE;

  constructor() {
    super();
    more.addEventListener("click", () => this.#loadMore());
    tiles.addEventListener("keydown", (event) => this.#key(event));
    // Either the column or the page scrolls, depending on the width of the window.
    addEventListener("scroll", () => this.#render(), { capture: true, passive: true });
    addEventListener("resize", () => this.#render());
    new ResizeObserver(() => this.#render()).observe(tiles);
    onFilter(() => this.load());
  }

  get selecting() {
    return this.#selecting;
  }

  set selecting(selecting) {
    this.#selecting = selecting;
    if (!selecting) this.#selected.clear();
    this.#selectionChanged();
  }

  /** The selected entries, newest first. */
  get selected() {
    return this.entries.filter((entry) => this.#selected.has(keyOf(entry)));
  }

  /** Load the list again, from the newest image. */
  async load() {
    this.#reset();
    await this.#loadMore();
    this.#selectionChanged();
  }

  /** Remove all images from the list. */
  clear() {
    this.#reset();
    this.selecting = false;
  }

  /**
   * Add a job that has just ended, if it matches the filter.
   * @param {Job} job
   */
  add(job) {
    if (this.entries.some((entry) => entry.job.id === job.id) || !matches(job)) return;
    const current = this.entries[this.#current];
    this.#insert(entriesOf(job));
    if (current && document.activeElement?.closest("#tiles")) {
      this.#current = this.entries.indexOf(current);
    }
    this.#tell();
  }

  /** @param {string} id */
  remove(id) {
    this.entries = this.entries.filter((entry) => entry.job.id !== id);
    this.#current = Math.max(0, Math.min(this.#current, this.entries.length - 1));
    for (const key of this.#selected) if (key.startsWith(`${id} `)) this.#selected.delete(key);
    this.#selectionChanged();
  }

  /**
   * Replace a job that has changed, and update the favorite marks of its tiles.
   * @param {Job} job
   */
  update(job) {
    for (const entry of this.entries) if (entry.job.id === job.id) entry.job = job;
    for (const [key, tile] of this.#shown) {
      if (key.startsWith(`${job.id} `)) tile.classList.toggle("favorite", job.favorite);
    }
  }

  /**
   * Focus a tile; without tiles, the stage.
   * @param {number} place A place beyond the end means the last tile.
   */
  focus(place) {
    if (!this.entries.length) return focusStage();
    this.#current = Math.max(0, Math.min(place, this.entries.length - 1));
    this.#reveal();
    this.#render();
    this.#buttonAt(this.#current)?.focus({ preventScroll: true });
  }

  /** Select all loaded entries. */
  selectAll() {
    this.#selected = new Set(this.entries.map(keyOf));
    this.#selectionChanged();
  }

  /**
   * Load older entries when a place is near the end of the list.
   * @param {number} place
   */
  near(place) {
    if (this.#hasMore && !this.#loading && place > this.entries.length - PAGE / 2) this.#loadMore();
  }

  async #loadMore() {
    const loading = (this.#loading ??= this.#loadPage());
    await loading;
    if (this.#loading !== loading) return;
    this.#loading = null;
    // The jobs of this page may have too few images, or none, to fill the visible part.
    this.#render();
  }

  #reset() {
    this.#generation += 1;
    this.#loading = null;
    this.entries = [];
    this.loaded = false;
    this.#last = "";
    this.#hasMore = false;
    this.#current = this.#anchor = 0;
    this.#selected.clear();
  }

  async #loadPage() {
    problem.textContent = "";
    more.hidden = true;
    const generation = this.#generation;
    try {
      const after = this.#last ? `&after=${this.#last}` : "";
      const page = await api.get(`v1/jobs?${filterQuery()}&limit=${PAGE}${after}`);
      if (generation !== this.#generation) return;
      this.#last = page.last_id ?? this.#last;
      this.#hasMore = page.has_more;
      this.loaded = true;
      const known = new Set(this.entries.map((entry) => entry.job.id));
      const fresh = page.data.filter((/** @type {Job} */ job) => !known.has(job.id));
      this.#insert(fresh.flatMap(entriesOf));
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#hasMore = false;
      // The last job of the previous page was deleted meanwhile.
      if (error instanceof ApiError && error.status === 404 && this.#last) {
        setTimeout(() => this.load());
        return;
      }
      problem.textContent = `The gallery could not be loaded. ${/** @type {Error} */ (error).message}`;
      more.hidden = false;
    }
    this.#tell();
  }

  /**
   * Insert entries in the server's order. The page may learn of a job's end after that of a newer job.
   * @param {Entry[]} entries
   */
  #insert(entries) {
    this.entries.push(...entries);
    this.entries.sort((a, b) => b.job.created - a.job.created);
  }

  #tell() {
    const number = this.entries.length;
    const lacking = number === 0 && !this.#hasMore && !problem.textContent;
    empty.hidden = !lacking;
    empty.textContent = filtersSet() ? "No image matches." : "Finished images appear here.";
    count.textContent = number ? `${number}${this.#hasMore ? "+" : ""}` : "";
    this.#render();
  }

  #selectionChanged() {
    this.#tell();
    for (const [key, tile] of this.#shown) this.#mark(tile, key);
    tiles.classList.toggle("selecting", this.#selecting);
    this.dispatchEvent(new Event("select"));
  }

  // --- elements -----------------------------------------------------------------------------------

  #measure() {
    const width = tiles.clientWidth;
    this.#columns = Math.max(1, Math.floor((width + GAP) / (TILE + GAP)));
    this.#side = (width - GAP * (this.#columns - 1)) / this.#columns;
    const rows = Math.ceil(this.entries.length / this.#columns);
    tiles.style.height = `${Math.max(0, rows * (this.#side + GAP) - GAP)}px`;
  }

  #render() {
    if (!tiles.clientWidth) return;
    this.#measure();
    const row = this.#side + GAP;
    const { top } = tiles.getBoundingClientRect();
    const first = Math.max(0, Math.floor(-top / row) - SPARE_ROWS) * this.#columns;
    const last = (Math.ceil((innerHeight - top) / row) + SPARE_ROWS) * this.#columns;
    const wanted = new Set();
    /** @type {HTMLElement | null} */
    let before = null;
    for (let place = 0; place < this.entries.length; place += 1) {
      // The current tile stays an element: it may have the focus.
      if ((place < first || place >= last) && place !== this.#current) continue;
      const key = keyOf(this.entries[place]);
      wanted.add(key);
      const tile = this.#shown.get(key) ?? this.#tile(this.entries[place], key);
      this.#shown.set(key, tile);
      this.#put(tile, place);
      const follows = before ? before.nextElementSibling : tiles.firstElementChild;
      // An element that is moved loses the focus.
      if (tile !== follows && !tile.contains(document.activeElement)) {
        tiles.insertBefore(tile, follows);
      }
      before = tile;
    }
    for (const [key, tile] of this.#shown) {
      if (wanted.has(key)) continue;
      tile.remove();
      this.#shown.delete(key);
    }
    this.near(last);
  }

  /**
   * @param {HTMLElement} tile
   * @param {number} place
   */
  #put(tile, place) {
    const x = (place % this.#columns) * (this.#side + GAP);
    const y = Math.floor(place / this.#columns) * (this.#side + GAP);
    tile.style.width = tile.style.height = `${this.#side}px`;
    tile.style.translate = `${x}px ${y}px`;
    tile.dataset.place = String(place);
    tile.setAttribute("aria-posinset", String(place + 1));
    tile.setAttribute("aria-setsize", String(this.#hasMore ? -1 : this.entries.length));
    const button = /** @type {HTMLElement} */ (tile.firstElementChild);
    button.tabIndex = place === this.#current ? 0 : -1;
  }

  /**
   * @param {Entry} entry
   * @param {string} key
   */
  #tile(entry, key) {
    const { job, image } = entry;
    const button = make("button", {
      type: "button",
      title: shortened(nameOf(job), 120),
      click: (/** @type {MouseEvent} */ event) => this.#click(event, entry),
    });
    if (image) {
      const { width, height } = image;
      const thumb = /** @type {HTMLImageElement} */ (
        make("img", { alt: nameOf(job), loading: "lazy", decoding: "async", width, height })
      );
      showImage(thumb, image.url, () => button.replaceChildren(make("span", {}, "not available")));
      button.append(thumb);
    } else {
      const what = job.status === "cancelled" ? "Cancelled" : "Failed";
      button.append(make("span", {}, what), make("small", {}, shortened(nameOf(job), 60)));
    }
    const tile = make("li", { "data-job": job.id }, button, icon("star"));
    tile.classList.toggle("favorite", job.favorite);
    this.#mark(tile, key);
    return tile;
  }

  /**
   * @param {HTMLElement} tile
   * @param {string} key
   */
  #mark(tile, key) {
    const button = /** @type {HTMLElement} */ (tile.firstElementChild);
    if (this.#selecting) button.setAttribute("aria-pressed", String(this.#selected.has(key)));
    else button.removeAttribute("aria-pressed");
  }

  /** @param {number} place */
  #buttonAt(place) {
    const entry = this.entries[place];
    const button = entry && this.#shown.get(keyOf(entry))?.firstElementChild;
    return button instanceof HTMLElement ? button : null;
  }

  /** Scroll the current tile into view. */
  #reveal() {
    this.#measure();
    const row = this.#side + GAP;
    const marker = byId("tiles-marker", HTMLElement);
    marker.style.height = `${this.#side}px`;
    marker.style.translate = `0 ${Math.floor(this.#current / this.#columns) * row}px`;
    marker.scrollIntoView({ block: "nearest", behavior: "instant" });
  }

  // --- pointer and keys ---------------------------------------------------------------------------

  /**
   * @param {MouseEvent} event
   * @param {Entry} entry
   */
  #click(event, entry) {
    const place = this.entries.indexOf(entry);
    this.#current = place;
    const together = event.ctrlKey || event.metaKey;
    if (!this.#selecting && !together && !event.shiftKey) {
      this.#anchor = place;
      this.#render();
      this.dispatchEvent(new CustomEvent("open", { detail: entry }));
      return;
    }
    this.#selecting = true;
    if (event.shiftKey) {
      const [from, to] = [Math.min(this.#anchor, place), Math.max(this.#anchor, place)];
      for (const one of this.entries.slice(from, to + 1)) this.#selected.add(keyOf(one));
    } else {
      this.#toggle(entry);
      this.#anchor = place;
    }
    this.#selectionChanged();
  }

  /** @param {Entry} entry */
  #toggle(entry) {
    const key = keyOf(entry);
    if (!this.#selected.delete(key)) this.#selected.add(key);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.altKey || ((event.ctrlKey || event.metaKey) && event.key !== "a")) return;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.#columns, ArrowDown: this.#columns };
    const ends = { Home: 0, End: this.entries.length - 1 };
    const entry = this.entries[this.#current];
    if (event.key in moves) this.focus(this.#current + moves[/** @type {"ArrowUp"} */ (event.key)]);
    else if (event.key in ends) this.focus(ends[/** @type {"End"} */ (event.key)]);
    else if (event.key === "Escape" && this.#selecting) this.selecting = false;
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) {
      this.#selecting = true;
      this.selectAll();
    } else if (event.key === "Delete" && entry) {
      const detail = this.selected.length ? this.selected : [entry];
      this.dispatchEvent(new CustomEvent("delete", { detail }));
    } else return;
    event.preventDefault();
  }
}

/** @param {Entry} entry */
function keyOf({ job, image }) {
  return `${job.id} ${image?.index ?? ""}`;
}

/**
 * @param {Job} job
 * @returns {Entry[]}
 */
function entriesOf(job) {
  if (job.images.length) return job.images.map((image) => ({ job, image }));
  const shown = job.status === "failed" || (job.status === "cancelled" && filtersSet());
  return shown ? [{ job, image: null }] : [];
}
