/** The machines of a cluster: a button in the page's header, and the table that it opens. */

import { api } from "./api.js";
import { byId, make } from "./dom.js";
import { counted, gigabytes, listed } from "./format.js";
import { tell } from "./header.js";

/**
 * A machine of GET /v1/cluster.
 * @typedef {object} Machine
 * @property {string} name Its address; empty on a server without a cluster.
 * @property {string} host
 * @property {"ready" | "leaving" | "shunned" | "lost" | "left"} state
 * @property {string} reason Why it accepts no workers; empty if it accepts them.
 * @property {number} slots
 * @property {number} free_slots
 * @property {number} free_bytes
 * @property {{model: string, state: string}[]} workers
 */

const OPEN_MS = 2_000;
const CLOSED_MS = 10_000;

const line = byId("open-cluster", HTMLButtonElement);
const panel = byId("cluster", HTMLElement);
const rows = byId("machines", HTMLElement);

export class ClusterStatus {
  /** True if the server has a cluster; null until the page knows. @type {boolean | null} */
  #exists = null;
  /** Names of the machines that are expected to stay. @type {Set<string>} */
  #present = new Set();
  /** The machines in the table, as JSON. */
  #shown = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  constructor() {
    panel.addEventListener("toggle", () => this.#refresh());
  }

  /** Show the machines and keep them up to date, unless the server has no cluster. */
  async load() {
    if (this.#exists === null) await this.#refresh();
  }

  async #refresh() {
    clearTimeout(this.#timer);
    if (!document.hidden && api.reachable && !api.locked) await this.#read().catch(() => {});
    clearTimeout(this.#timer);
    if (!this.#exists) return;
    const pause = panel.matches(":popover-open") ? OPEN_MS : CLOSED_MS;
    this.#timer = setTimeout(() => this.#refresh(), pause);
  }

  async #read() {
    /** @type {{machines: Machine[]}} */
    const { machines } = await api.get("v1/cluster");
    this.#exists = !machines.some(({ name }) => name === "");
    if (!this.#exists) return;
    this.#tellLosses(machines);
    const shown = JSON.stringify(machines);
    // Unchanged rows are not rebuilt, so that text in them can stay selected.
    if (shown !== this.#shown) this.#show(machines);
    this.#shown = shown;
  }

  /** @param {Machine[]} machines */
  #tellLosses(machines) {
    const lost = machines.filter(({ name, state }) => state === "lost" && this.#present.has(name));
    const staying = machines.filter(({ state }) => state === "ready" || state === "shunned");
    this.#present = new Set(staying.map(({ name }) => name));
    if (!lost.length) return;
    const names = listed(lost.map(({ name }) => name));
    tell(`Lost: ${names}. Running jobs of a lost machine restart on another one.`);
  }

  /** @param {Machine[]} machines */
  #show(machines) {
    const faults = ["leaving", "shunned", "lost"]
      .map((state) => [machines.filter((machine) => machine.state === state).length, state])
      .filter(([count]) => count)
      .map((pair) => pair.join(" "));
    line.hidden = false;
    const there = machines.filter(({ state }) => state !== "left");
    line.textContent = [counted(there.length, "machine"), ...faults].join(", ");
    line.classList.toggle("trouble", faults.length > 0 || there.length === 0);
    rows.replaceChildren(...machines.map(rowOf));
    byId("no-machines", HTMLElement).hidden = machines.length > 0;
  }
}

/** @param {Machine} machine */
function rowOf(machine) {
  const { name, host, state, reason, workers } = machine;
  const busy = workers.filter((worker) => worker.state === "busy").length;
  return make(
    "tr",
    { class: state },
    make("th", { scope: "row" }, name, make("small", {}, host)),
    cell("State", make("b", {}, state), make("small", {}, reason)),
    cell("Models", loadedOf(machine) || "none"),
    cell("Running jobs", String(busy)),
    cell("Free room", roomOf(machine) || "none"),
  );
}

/**
 * @param {string} label Shown in narrow windows, where the table has no visible header row.
 * @param {...(Node | string)} children
 */
function cell(label, ...children) {
  return make("td", { "data-label": label }, ...children);
}

/**
 * The models of a machine's workers, such as "a × 2, b (starting)".
 * @param {Machine} machine
 */
function loadedOf({ workers }) {
  /** @type {Map<string, number>} */
  const counts = new Map();
  for (const { model, state } of workers) {
    const text = state === "ready" || state === "busy" ? model : `${model} (${state})`;
    counts.set(text, (counts.get(text) ?? 0) + 1);
  }
  return [...counts].map(([text, count]) => (count > 1 ? `${text} × ${count}` : text)).join(", ");
}

/**
 * The free room, such as "1 of 2 slots, 10.5 GB"; empty for a machine that accepts no workers.
 * @param {Machine} machine
 */
function roomOf({ state, slots, free_slots: free, free_bytes: bytes }) {
  if (state !== "ready") return "";
  return `${free} of ${counted(slots, "slot")}, ${gigabytes(bytes)}`;
}
