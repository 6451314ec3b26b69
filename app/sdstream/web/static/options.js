/**
 * Fields for further options of the chosen model, built from the JSON Schema in `options` of
 * GET /v1/models/{id}. The form holds their values and sends them.
 */

import { api } from "./api.js";
import { byId, icon, make } from "./dom.js";
import { labelOf } from "./format.js";

/** @import {Model} from "./api.js" */

/**
 * @typedef {{type?: string, enum?: string[], minimum?: number, maximum?: number, default?: unknown,
 *   exclusiveMinimum?: number, description?: string}} Schema
 */
/** @typedef {{id: string, scale: number}} Lora */

/** Title of a group -> its options; the remaining options come last. */
const GROUPS = {
  "High resolution": ["hires_scale", "hires_steps", "hires_strength", "hires_upscaler"],
  Upscaling: ["upscaler", "upscale"],
  Speed: ["cache_mode", "cache_threshold", "cache_start", "cache_end", "cache_options", "vae_tiling"],
  "Image file": ["output_format", "output_compression"],
  Edits: ["fit", "mask_blur", "reference_size"],
  Control: ["control_strength", "control_canny"],
  Sampling: [
    "eta", "clip_skip", "flow_shift", "slg_scale", "slg_start", "slg_end", "slg_layers", "sigmas",
  ],
};
/** Options that have a field in the form, or mean the same as one that has. */
const ELSEWHERE = new Set([
  "prompt", "negative_prompt", "model", "n", "size", "width", "height", "aspect_ratio", "seed",
  "sample_steps", "sampler", "schedule", "cfg_scale", "guidance", "strength", "quality", "lora",
  "only_masked", "only_masked_padding", "expand", "mask_mode", "safety_check",
]);

const panel = byId("extras", HTMLDetailsElement);
const place = byId("extras-fields", HTMLElement);
const digest = byId("extras-digest", HTMLElement);
const loraField = byId("lora-field", HTMLElement);
const loraList = byId("loras", HTMLElement);
const loraChoice = byId("add-lora", HTMLSelectElement);

/** Fires "set" with {name, value} as detail; an undefined value removes the option. */
export class Options extends EventTarget {
  /** Names of the server's LoRAs. @type {string[]} */
  loras = [];
  #model = "";
  /** @type {Record<string, Schema>} */
  #schemas = {};
  /** @type {Record<string, unknown>} */
  #values = {};
  /** Model id -> schemas of its options. @type {Map<string, Promise<Record<string, Schema>>>} */
  #known = new Map();

  /** Option -> its schema, for the shown model. */
  get schemas() {
    return this.#schemas;
  }

  constructor() {
    super();
    loraChoice.addEventListener("change", () => {
      this.#setLoras([...this.#chosenLoras, { id: loraChoice.value, scale: 1 }]);
      loraChoice.value = "";
    });
  }

  /** Forget the schemas: the server may have other models and files now. */
  forget() {
    this.#known.clear();
    this.#model = "";
  }

  /**
   * Show the options of a model, with the values that are set.
   * @param {Model | undefined} model
   * @param {Record<string, unknown>} values
   */
  async show(model, values) {
    this.#values = values;
    if (model && model.id !== this.#model) {
      this.#model = model.id;
      try {
        const schemas = await this.#schemasOf(model);
        if (this.#model !== model.id) return;
        this.#schemas = schemas;
        this.#build(model);
      } catch {
        // The next call tries again.
        this.#model = "";
        return;
      }
    }
    this.#fill();
  }

  /**
   * Names of the given options that a model does not accept; none if the server does not respond.
   * @param {Model | undefined} model
   * @param {string[]} names
   */
  async unsupported(model, names) {
    if (!model || !names.length) return [];
    const schemas = await this.#schemasOf(model).catch(() => null);
    return schemas ? names.filter((name) => !schemas[name]) : [];
  }

  /**
   * Option -> its schema, for a model.
   * @param {Model} model
   */
  async #schemasOf({ id }) {
    const answer = this.#known.get(id) ?? this.#read(id);
    this.#known.set(id, answer);
    try {
      return await answer;
    } catch (error) {
      this.#known.delete(id);
      throw error;
    }
  }

  /** @param {string} id */
  async #read(id) {
    const [{ options }, loras] = await Promise.all([
      api.get(`v1/models/${id.split("/").map(encodeURIComponent).join("/")}`),
      api.get("v1/loras"),
    ]);
    this.loras = loras.data.map((/** @type {{id: string}} */ lora) => lora.id);
    return options;
  }

  /** @param {Model} model */
  #build(model) {
    loraField.hidden = !this.#schemas.lora;
    loraChoice.replaceChildren(
      make("option", { value: "" }, "Add a LoRA…"),
      ...this.loras.map((id) => make("option", { value: id }, id)),
    );
    const grouped = new Set(Object.values(GROUPS).flat());
    const rest = Object.keys(this.#schemas).filter((name) => !grouped.has(name) && !ELSEWHERE.has(name));
    const groups = Object.entries({ ...GROUPS, Other: rest })
      .map(([title, names]) => ({ title, names: names.filter((name) => this.#schemas[name]) }))
      .filter(({ names }) => names.length > 0);
    place.replaceChildren(
      ...groups.map(({ title, names }) =>
        make(
          "fieldset",
          { class: "field" },
          make("legend", {}, title),
          make("div", { class: "option-grid" }, ...names.map((name) => this.#field(name))),
        ),
      ),
    );
    byId("control-field", HTMLElement).hidden = !model.capabilities.control;
    byId("references-field", HTMLElement).hidden = !model.capabilities.reference_images;
  }

  /** @param {string} name */
  #field(name) {
    const schema = this.#schemas[name];
    const change = (/** @type {Event} */ event) => {
      // The form's listener is for the form's own fields.
      event.stopPropagation();
      const value = valueOf(/** @type {HTMLInputElement} */ (event.target), schema);
      this.dispatchEvent(new CustomEvent("set", { detail: { name, value } }));
    };
    const control = controlFor(schema, change);
    control.dataset.option = name;
    control.id = `option-${name}`;
    const label = make("label", { for: control.id }, labelOf(name));
    const ticked = schema.type === "boolean";
    const parts = ticked ? [control, label] : [label, control];
    return make("div", { class: ticked ? "check wide" : "", title: schema.description ?? "" }, ...parts);
  }

  #fill() {
    for (const control of place.querySelectorAll("[data-option]")) {
      const field = /** @type {HTMLInputElement} */ (control);
      const value = this.#values[field.dataset.option ?? ""];
      if (field === document.activeElement && value !== undefined) continue;
      if (field.type === "checkbox") field.checked = value === true;
      else field.value = textOf(value);
    }
    loraList.replaceChildren(...this.#chosenLoras.map((lora, index) => this.#loraRow(lora, index)));
    const names = Object.keys(this.#values).filter((name) => this.#schemas[name]);
    digest.textContent = names.length ? `${names.length} set` : "LoRA, upscaling, files";
  }

  get #chosenLoras() {
    return /** @type {Lora[]} */ (this.#values.lora ?? []);
  }

  /**
   * @param {Lora} lora
   * @param {number} index
   */
  #loraRow(lora, index) {
    const scale = make("input", {
      type: "number", step: "any", min: -10, max: 10, value: lora.scale, placeholder: "1",
      "aria-label": `Scale of ${lora.id}`,
      input: (/** @type {Event} */ event) => event.stopPropagation(),
      change: (/** @type {Event} */ event) => {
        const { value } = /** @type {HTMLInputElement} */ (event.target);
        const changed = { ...lora, scale: value === "" ? 1 : Number(value) };
        this.#setLoras(this.#chosenLoras.with(index, changed));
      },
    });
    const drop = () => this.#setLoras(this.#chosenLoras.toSpliced(index, 1));
    return make(
      "li",
      {},
      make("span", {}, lora.id),
      scale,
      make("button", { type: "button", class: "icon", click: drop }, icon("close"),
        make("span", { class: "unseen" }, `Remove ${lora.id}`)),
    );
  }

  /** @param {Lora[]} loras */
  #setLoras(loras) {
    const value = loras.length ? loras : undefined;
    this.dispatchEvent(new CustomEvent("set", { detail: { name: "lora", value } }));
  }

  /** Open the panel. */
  open() {
    panel.open = true;
  }
}

/**
 * @param {Schema} schema
 * @param {(event: Event) => void} change
 */
function controlFor(schema, change) {
  if (schema.enum) {
    const label = schema.default === undefined ? "default" : `default (${schema.default})`;
    return make(
      "select",
      { input: change },
      make("option", { value: "" }, label),
      ...schema.enum.map((value) => make("option", { value }, value)),
    );
  }
  if (schema.type === "boolean") return make("input", { type: "checkbox", input: change });
  if (schema.type === "number" || schema.type === "integer") {
    return make("input", {
      type: "number",
      min: schema.minimum ?? schema.exclusiveMinimum,
      max: schema.maximum,
      step: schema.type === "integer" ? 1 : "any",
      inputmode: schema.type === "integer" ? "numeric" : "decimal",
      placeholder: schema.default ?? "default",
      input: change,
    });
  }
  const placeholder = { object: "name=1, b=2", array: "1, 2, 3" }[schema.type ?? ""] ?? "default";
  return make("input", { type: "text", placeholder, input: change, autocomplete: "off" });
}

/**
 * @param {HTMLInputElement} field
 * @param {Schema} schema
 * @returns {unknown} The value for the API; undefined for an empty field.
 */
function valueOf(field, schema) {
  if (field.type === "checkbox") return field.checked || undefined;
  const text = field.value.trim();
  if (text === "") return undefined;
  if (field.type === "number") return Number(text);
  const parts = text.split(",").map((part) => part.trim()).filter(Boolean);
  if (schema.type === "array") return parts.map(Number);
  if (schema.type !== "object") return text;
  return Object.fromEntries(parts.map((part) => [part.split("=")[0].trim(), Number(part.split("=")[1])]));
}

/** @param {unknown} value */
function textOf(value) {
  if (value === undefined || value === null) return "";
  if (Array.isArray(value)) return value.join(", ");
  if (typeof value !== "object") return String(value);
  return Object.entries(value).map((pair) => pair.join("=")).join(", ");
}
