/** The server's API: requests, the API key, tokens for URLs, and whether the server responds. */

import { forget, keep, recall } from "./storage.js";

/**
 * A model of GET /v1/models.
 * @typedef {object} Model
 * @property {string} id
 * @property {boolean} default
 * @property {string} [alias_of]
 * @property {string} state
 * @property {string} [description]
 * @property {string} [error]
 * @property {{size: string, sample_steps: number, sampler: string, schedule: string,
 *   cfg_scale: number}} defaults
 * @property {{min: number, max: number, multiple: number}} size
 * @property {{samplers: string[], schedules: string[], guidance: boolean, control: boolean,
 *   reference_images: boolean}} capabilities
 */

/** URL of the API: the folder of this page, which may be below a proxy's prefix. */
export const BASE = new URL(".", document.baseURI);

const UNREACHABLE = "The server does not respond. Try again when it is back.";
/** The message for a 413 response of a proxy, which has no message from the server. */
const TOO_LARGE = "The upload is too large for the server, or for a proxy in front of it.";
/** Statuses of a proxy that cannot reach the server. The server itself may answer 503 too. */
const GATEWAY = [502, 503, 504];
/** The path that reports whether the server runs. */
const LIVE = "livez";
/** Time until a response must begin. */
const TIMEOUT_MS = 30_000;
const FIRST_PAUSE_MS = 1_000;
const LONGEST_PAUSE_MS = 8_000;
/** A token is replaced this many seconds before it expires. */
const TOKEN_MARGIN_S = 120;

/** The server rejected a request. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {{message?: string, param?: string | null, reason?: string | null}} error
   */
  constructor(status, error) {
    super(error.message ?? (status === 413 ? TOO_LARGE : `The server answered ${status}.`));
    this.status = status;
    this.param = error.param ?? null;
    this.reason = error.reason ?? null;
  }
}

/** The server did not respond. */
class Unreachable extends Error {
  constructor() {
    super(UNREACHABLE);
  }
}

/**
 * Parse JSON from the server. Seeds stay text: they have up to 63 bits, and a number holds only 53.
 * @param {string} text
 * @returns {any}
 */
export function parse(text) {
  /** @type {(key: string, value: any, context?: {source: string}) => any} */
  const revive = (key, value, context) =>
    key === "seed" && typeof value === "number" ? (context?.source ?? String(value)) : value;
  return JSON.parse(text, revive);
}

/**
 * Fires "connection" when the server stops or starts to respond, "key" when the key changes, and
 * "locked" when the user enters no key.
 */
class Api extends EventTarget {
  reachable = true;
  /** True if the server requires a key and the user entered none. */
  locked = false;
  /** Asks the user for a key. @type {(rejected: boolean) => Promise<boolean>} */
  askForKey = async () => false;

  #key = recall("key");
  /** @type {{token: string, expires: number} | null} */
  #token = null;
  /** @type {Promise<boolean> | null} */
  #asking = null;

  get hasKey() {
    return this.#key !== null;
  }

  /**
   * @param {string | null} key
   * @param {boolean} [remember] Keep the key after the tab is closed.
   */
  setKey(key, remember = false) {
    this.#key = key;
    this.#token = null;
    this.locked = false;
    forget("key");
    if (key) keep("key", key, remember ? "local" : "session");
    this.dispatchEvent(new Event("key"));
  }

  /**
   * True if the server accepts this key.
   * @param {string} key
   */
  async accepts(key) {
    const response = await this.#fetch("GET", "v1/models", { key });
    return response.status !== 401;
  }

  /**
   * @param {string} path Path relative to the API, such as "v1/models".
   * @returns {Promise<any>}
   */
  async get(path) {
    return parse(await (await this.#send("GET", path)).text());
  }

  /**
   * @param {string} path
   * @param {{body?: object | FormData, headers?: Record<string, string>}} [options]
   * @returns {Promise<any>}
   */
  async post(path, options = {}) {
    return parse(await (await this.#send("POST", path, options)).text());
  }

  /** @param {string} path */
  async delete(path) {
    await this.#send("DELETE", path);
  }

  /** @param {string} path */
  async file(path) {
    return (await this.#send("GET", path)).blob();
  }

  /**
   * A URL for <img> and EventSource. They cannot send the key, so the URL has a token instead.
   * @param {string} path
   * @param {Record<string, string>} [query]
   */
  async address(path, query = {}) {
    const url = new URL(path, BASE);
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    if (this.#key) url.searchParams.set("token", await this.#freshToken());
    return url.href;
  }

  /** Forget the token, which the server may no longer accept. */
  dropToken() {
    this.#token = null;
  }

  /** Check whether the server responds; if not, retry until it does. */
  async look() {
    await this.#fetch("GET", LIVE).catch(() => {});
  }

  #lost() {
    if (!this.reachable) return;
    this.reachable = false;
    this.dispatchEvent(new Event("connection"));
    this.#lookAgain(FIRST_PAUSE_MS);
  }

  /** @param {number} pause */
  #lookAgain(pause) {
    setTimeout(async () => {
      await this.look();
      if (!this.reachable) this.#lookAgain(Math.min(pause * 2, LONGEST_PAUSE_MS));
    }, pause);
  }

  async #freshToken() {
    if (!this.#token || this.#token.expires - TOKEN_MARGIN_S < Date.now() / 1000) {
      this.#token = await this.post("v1/tokens");
    }
    return /** @type {{token: string}} */ (this.#token).token;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{body?: object | FormData, headers?: Record<string, string>}} [options]
   * @returns {Promise<Response>}
   */
  async #send(method, path, options = {}) {
    for (;;) {
      const key = this.#key;
      const response = await this.#fetch(method, path, { ...options, key });
      // The response to a read is of no use to the owner of another key.
      if (method === "GET" && key !== this.#key) continue;
      if (response.ok) return response;
      if (response.status === 401 && (await this.#admitted(key))) continue;
      throw new ApiError(response.status, await problem(response));
    }
  }

  /**
   * Get a key after a 401; true if the request can be retried with another key.
   * @param {string | null} rejected The key that was sent.
   */
  async #admitted(rejected) {
    if (rejected !== this.#key) return true;
    if (this.locked) return false;
    this.#asking ??= this.askForKey(rejected !== null).finally(() => {
      this.#asking = null;
    });
    this.locked = !(await this.#asking);
    if (this.locked) this.dispatchEvent(new Event("locked"));
    return !this.locked;
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {{body?: object | FormData, headers?: Record<string, string>, key?: string | null}}
   *   [options]
   */
  async #fetch(method, path, { body, headers = {}, key } = {}) {
    const asForm = body instanceof FormData;
    const sent = new Headers(headers);
    if (key) sent.set("Authorization", `Bearer ${key}`);
    if (body && !asForm) sent.set("Content-Type", "application/json");
    const limit = new AbortController();
    // An upload may take longer than the timeout, and so may the body of the response.
    const timer = asForm ? undefined : setTimeout(() => limit.abort(), TIMEOUT_MS);
    let response;
    try {
      response = await fetch(new URL(path, BASE), {
        method,
        headers: sent,
        body: asForm || !body ? body : JSON.stringify(body),
        signal: limit.signal,
      });
    } catch {
      this.#lost();
      throw new Unreachable();
    } finally {
      clearTimeout(timer);
    }
    if (!GATEWAY.includes(response.status)) this.#found();
    else if (path === LIVE) this.#lost();
    else await this.look();
    if (!this.reachable) throw new Unreachable();
    return response;
  }

  #found() {
    if (this.reachable) return;
    this.reachable = true;
    this.dispatchEvent(new Event("connection"));
  }
}

/** @param {Response} response */
async function problem(response) {
  try {
    return parse(await response.text()).error ?? {};
  } catch {
    return {};
  }
}

export const api = new Api();

/**
 * The path of an absolute URL from "v1/" on. This page may reach the server by another host name
 * and prefix.
 * @param {string} url
 */
export function pathOf(url) {
  return url.slice(url.lastIndexOf("/v1/") + 1);
}

/** The URL that each <img> shows or will show. @type {WeakMap<HTMLImageElement, string>} */
const wanted = new WeakMap();

/**
 * For each <img> whose image could not be loaded because the server does not respond: a function
 * that loads it.
 * @type {Map<HTMLImageElement, () => void>}
 */
const waiting = new Map();

api.addEventListener("connection", () => {
  if (!api.reachable) return;
  const loads = [...waiting.values()];
  waiting.clear();
  for (const load of loads) load();
});

/**
 * Show an image from the server, or from a data: or blob: URL. If the server does not respond, the
 * image is loaded when it is back.
 * @param {HTMLImageElement} image
 * @param {string} url
 * @param {() => void} [gone] Called if the server has no such image.
 */
export async function showImage(image, url, gone = () => {}) {
  if (wanted.get(image) === url) return;
  wanted.set(image, url);
  waiting.delete(image);
  let retried = false;
  const load = async () => {
    try {
      const address = /^(data|blob):/.test(url) ? url : await api.address(pathOf(url));
      if (wanted.get(image) === url) image.src = address;
    } catch {
      await failed();
    }
  };
  const failed = async () => {
    await api.look();
    if (wanted.get(image) !== url) return;
    if (!api.reachable) {
      retried = false;
      waiting.set(image, load);
    } else if (retried) {
      // The next call tries again.
      wanted.delete(image);
      gone();
    } else {
      // The server may have rejected the token, or may just have started again.
      retried = true;
      api.dropToken();
      await load();
    }
  };
  image.onerror = failed;
  await load();
}
