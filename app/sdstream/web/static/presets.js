/** Presets: settings of the form under names, stored in the browser. */

import { byId, make } from "./dom.js";
import { keep, recall, recallJson } from "./storage.js";

/** @import {Form, Settings} from "./form.js" */

/** Type of the options that the form does not take with another type. @type {Record<string, string>} */
const TYPES = {
  model: "string", negative_prompt: "string", size: "string", sampler: "string", schedule: "string",
  priority: "string", n: "number", sample_steps: "number", cfg_scale: "number", guidance: "number",
  strength: "number", only_masked: "boolean", only_masked_padding: "number",
};

const choice = byId("preset", HTMLSelectElement);
const saveButton = byId("preset-save", HTMLButtonElement);
const deleteButton = byId("preset-delete", HTMLButtonElement);
const changed = byId("preset-changed", HTMLElement);
const naming = byId("preset-naming", HTMLElement);
const nameField = byId("preset-name", HTMLInputElement);
const store = byId("preset-store", HTMLButtonElement);
const sure = byId("preset-sure", HTMLElement);

/** Fires "use" with the Settings of a preset and its name as detail. */
export class Presets extends EventTarget {
  /** Name -> settings. @type {Record<string, Settings>} */
  #presets = stored();
  #form;

  /** @param {Form} form */
  constructor(form) {
    super();
    this.#form = form;
    form.addEventListener("change", () => this.#compare());
    choice.addEventListener("input", (event) => event.stopPropagation());
    choice.addEventListener("change", () => this.#use());
    saveButton.addEventListener("click", () => this.#ask());
    deleteButton.addEventListener("click", () => this.#askToDelete());
    on("preset-restore", () => this.#use());
    on("preset-keep", () => this.#closed(deleteButton));
    on("preset-delete-now", () => this.#delete());
    on("preset-cancel", () => this.#closed(saveButton));
    store.addEventListener("click", () => this.#save());
    nameField.addEventListener("input", (event) => {
      event.stopPropagation();
      this.#showName();
    });
    nameField.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      // Enter would submit the form, which generates.
      event.preventDefault();
      if (event.key === "Enter") this.#save();
      else this.#closed(saveButton);
    });
    addEventListener("storage", ({ key }) => {
      if (key !== "sdstream.presets") return;
      // Another tab has changed them.
      this.#presets = stored();
      this.#list(choice.value);
    });
    this.#list(recall("preset") ?? "");
  }

  #use() {
    keep("preset", choice.value);
    this.#closed(choice);
    const settings = this.#presets[choice.value];
    if (settings) this.dispatchEvent(new CustomEvent("use", { detail: { name: choice.value, settings } }));
    this.#compare();
  }

  #ask() {
    sure.hidden = true;
    naming.hidden = false;
    nameField.value = choice.value;
    this.#showName();
    nameField.select();
  }

  #askToDelete() {
    naming.hidden = true;
    sure.hidden = false;
    byId("preset-question", HTMLElement).textContent = `Delete the preset “${choice.value}”?`;
    byId("preset-keep", HTMLButtonElement).focus();
  }

  #showName() {
    const name = nameField.value.trim();
    store.disabled = name === "";
    store.textContent = Object.hasOwn(this.#presets, name) ? "Overwrite" : "Save";
  }

  #save() {
    const name = nameField.value.trim();
    if (!name) return;
    this.#set({ ...this.#presets, [name]: presetOf(this.#form.read()) }, name);
    this.#closed(choice);
  }

  #delete() {
    const { [choice.value]: _, ...others } = this.#presets;
    this.#set(others, "");
    this.#closed(choice);
  }

  /**
   * @param {Record<string, Settings>} presets
   * @param {string} chosen Name of a preset, or empty.
   */
  #set(presets, chosen) {
    this.#presets = presets;
    keep("presets", JSON.stringify(presets));
    keep("preset", chosen);
    this.#list(chosen);
  }

  /**
   * Close the rows for a name and for a question.
   * @param {HTMLElement} focus What has the focus then.
   */
  #closed(focus) {
    naming.hidden = sure.hidden = true;
    focus.focus();
  }

  /** @param {string} chosen */
  #list(chosen) {
    const names = Object.keys(this.#presets).sort((a, b) => a.localeCompare(b));
    choice.replaceChildren(
      make("option", { value: "" }, names.length ? "Choose…" : "None saved"),
      ...names.map((name) => make("option", { value: name }, name)),
    );
    choice.value = names.includes(chosen) ? chosen : "";
    this.#compare();
  }

  /** Show whether the settings are those of the chosen preset. */
  #compare() {
    const preset = this.#presets[choice.value];
    // Before the models are known, the form does not know which settings it takes.
    const ready = this.#form.model !== undefined;
    choice.disabled = saveButton.disabled = !ready;
    deleteButton.disabled = !preset;
    changed.hidden =
      !preset || !ready || same(this.#form.effective(preset), presetOf(this.#form.read()));
  }
}

/**
 * The presets of this browser, without values that the form does not take.
 * @returns {Record<string, Settings>}
 */
function stored() {
  const presets = Object.entries(recallJson("presets") ?? {}).filter(
    ([, settings]) => settings !== null && typeof settings === "object",
  );
  return Object.fromEntries(presets.map(([name, settings]) => [name, presetOf(typed(settings))]));
}

/**
 * @param {object} settings
 * @returns {Settings}
 */
function typed(settings) {
  return Object.fromEntries(
    Object.entries(settings).filter(([name, value]) => {
      if (name === "lora") return Array.isArray(value) && value.every((lora) => lora?.id);
      return !Object.hasOwn(TYPES, name) || typeof value === TYPES[name];
    }),
  );
}

/**
 * The settings that a preset holds: all but those of one image.
 * @param {Settings} settings
 * @returns {Settings}
 */
function presetOf({ prompt: _prompt, seed: _seed, expand: _expand, ...settings }) {
  return { negative_prompt: "", priority: "normal", ...settings };
}

/**
 * @param {Settings} one
 * @param {Settings} other
 */
function same(one, other) {
  const [a, b] = [one, other].map((settings) => JSON.stringify(Object.entries(settings).sort()));
  return a === b;
}

/**
 * @param {string} id
 * @param {() => void} act
 */
function on(id, act) {
  byId(id, HTMLButtonElement).addEventListener("click", act);
}
