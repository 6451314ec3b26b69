/** Presets: named settings of the form, stored in the browser. */

import { byId, make } from "./dom.js";
import { keep, recall, recallJson } from "./storage.js";

/** @import {Form, Settings} from "./form.js" */

/** Option -> the only type that the form accepts for it. @type {Record<string, string>} */
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

/** Fires "use" with the {name, settings} of a preset as detail. */
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
      // Enter would submit the form and so generate an image.
      event.preventDefault();
      if (event.key === "Enter") this.#save();
      else this.#closed(saveButton);
    });
    addEventListener("storage", ({ key }) => {
      if (key !== "sdstream.presets") return;
      // Another tab has changed the presets.
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
   * Hide the row for a name and the row that asks before a preset is deleted.
   * @param {HTMLElement} focus The element that gets the focus.
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

  /** Show whether the form's settings differ from the chosen preset. */
  #compare() {
    const preset = this.#presets[choice.value];
    // Until the models are loaded, the form does not know which settings apply.
    const ready = this.#form.model !== undefined;
    choice.disabled = saveButton.disabled = !ready;
    deleteButton.disabled = !preset;
    changed.hidden =
      !preset || !ready || same(this.#form.effective(preset), presetOf(this.#form.read()));
  }
}

/**
 * The presets that this browser stores, without values of a wrong type.
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
 * The settings that a preset stores: all except prompt, seed and border.
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
