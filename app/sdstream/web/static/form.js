/** The form: limits its fields to the model, holds the settings, and shows errors beside fields. */

import { byId, icon, make } from "./dom.js";
import { missingImages, withImages } from "./extra-options.js";
import { keep, recallJson } from "./storage.js";
import { counted, said, sentence } from "./format.js";

/** @import {Model} from "./api.js" */
/** @import {Source} from "./extra-options.js" */

/**
 * The values of the fields as options of the API. Seeds are text, since they have up to 63 bits.
 * @typedef {object} FieldSettings
 * @property {string} [prompt]
 * @property {string} [negative_prompt]
 * @property {string} [model]
 * @property {string} [size] "128x128".
 * @property {number} [n]
 * @property {string} [seed]
 * @property {number} [sample_steps]
 * @property {string} [sampler]
 * @property {string} [schedule]
 * @property {number} [cfg_scale]
 * @property {number} [guidance]
 * @property {number} [strength]
 * @property {boolean} [only_masked]
 * @property {number} [only_masked_padding]
 * @property {number[]} [expand] Pixels of left, top, right and bottom.
 * @property {string} [priority]
 */

/**
 * All options of a request, with and without a field.
 * @typedef {FieldSettings & Record<string, unknown>} Settings
 */

const WIDE = 3 / 2;
/** Default strength: a whole image should stay recognisable; under a mask nothing has to stay. */
const STRENGTH = { image: 0.75, mask: 1, border: 1 };
const LABELS = { none: "Generate", image: "Edit image", mask: "Edit image", border: "Expand" };

const NO_MODELS =
  "The server has no models. Download one with ‘sdstream pull’ on the server, then generate again.";

const form = byId("form", HTMLFormElement);
const prompt = byId("prompt", HTMLTextAreaElement);
const negative = byId("negative_prompt", HTMLTextAreaElement);
const model = byId("model", HTMLSelectElement);
const width = byId("width", HTMLInputElement);
const height = byId("height", HTMLInputElement);
const count = byId("n", HTMLInputElement);
const seed = byId("seed", HTMLInputElement);
const steps = byId("sample_steps", HTMLInputElement);
const stepsSlider = byId("steps-slider", HTMLInputElement);
/** Maximum of the slider; the number field accepts every value that the server allows. */
const SLIDER_STEPS = Number(stepsSlider.max);
const sampler = byId("sampler", HTMLSelectElement);
const schedule = byId("schedule", HTMLSelectElement);
const cfg = byId("cfg_scale", HTMLInputElement);
const guidance = byId("guidance", HTMLInputElement);
const strength = byId("strength", HTMLInputElement);
const onlyMasked = byId("only_masked", HTMLInputElement);
const padding = byId("only_masked_padding", HTMLInputElement);
const priority = byId("priority", HTMLSelectElement);
const eachLine = byId("each-line", HTMLInputElement);
const more = byId("more", HTMLDetailsElement);
const furtherLine = byId("further", HTMLElement);
const furtherField = byId("further-field", HTMLElement);
const formError = byId("form-error", HTMLElement);
const seedAgain = byId("seed-again", HTMLButtonElement);

/**
 * Fires "change" when a setting changes, "generate" when the user wants an image, and "lack" when
 * the user wants an image before the models are loaded.
 */
export class Form extends EventTarget {
  /** @type {Model[]} */
  #models = [];
  /** @type {Source} */
  #source = "none";
  /** Options without a field. @type {Record<string, unknown>} */
  #further = {};
  /** True if the user chose a strength. */
  #ownStrength = false;
  #lastSeed = "";
  /** The shape that the user chose before loading an image to edit. */
  #shape = "square";
  /** Pixels of the border to generate around the image. @type {number[] | null} */
  #expand = null;
  /** Which further images the user has chosen. */
  #extra = { control: false, references: false };
  /** Sentences about settings that were changed to the nearest possible value. @type {string[]} */
  #adjusted = [];
  /** True while the button shows that a request is being sent. */
  #sending = false;
  /** True if the form generates an image as soon as the models are loaded. */
  wanted = false;

  constructor() {
    super();
    for (const group of form.querySelectorAll(".slider")) joinSlider(group);
    for (const field of form.querySelectorAll(".field[data-field]")) giveErrorLine(field);
    eachLine.checked = recallJson("each_line") ?? false;
    more.open = recallJson("more") ?? false;
    more.addEventListener("toggle", () => keep("more", JSON.stringify(more.open)));
    form.addEventListener("input", (event) => this.#edited(/** @type {Element} */ (event.target)));
    // These fields are beside the mask, outside of the form's element.
    for (const field of [onlyMasked, padding]) {
      field.addEventListener("input", () => this.#edited(field));
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.generate();
    });
    seedAgain.addEventListener("click", () => this.#put(seed, this.#lastSeed));
    byId("seed-random", HTMLButtonElement).addEventListener("click", () => this.#put(seed, ""));
    byId("defaults", HTMLButtonElement).addEventListener("click", () => {
      this.#takeDefaults();
      this.#changed();
    });
    for (const side of [width, height]) {
      side.addEventListener("change", () => this.#put(side, nearest(side, side.value)));
    }
    byId("drop-further", HTMLButtonElement).addEventListener("click", () => {
      this.#further = {};
      this.#edited(furtherLine);
      more.querySelector("summary")?.focus();
    });
  }

  /** @returns {Model | undefined} */
  get model() {
    return this.#models.find((candidate) => candidate.id === model.value);
  }

  /**
   * Set the list of models. The first call restores the settings of the last visit, except for
   * fields that the user filled meanwhile, and generates if the user wanted an image meanwhile.
   * @param {Model[]} models
   */
  setModels(models) {
    const first = this.#models.length === 0;
    const filled = typed();
    this.#clearError(model);
    const chosen = models.find(({ id }) => id === model.value);
    this.#models = models;
    model.replaceChildren(...models.map(({ id }) => make("option", { value: id }, id)));
    const taken = chosen ?? models.find((candidate) => candidate.default) ?? models[0];
    if (taken) model.value = taken.id;
    if (!chosen) this.#takeModel();
    const { checked } = eachLine;
    if (first) this.apply({ ...recallJson("settings"), ...filled });
    eachLine.checked = checked;
    this.#changed();
    if (!models.length) this.showError("model", NO_MODELS, { focus: this.wanted });
    if (this.wanted) this.generate();
  }

  /**
   * Set which part of the image an edit changes.
   * @param {Source} source
   * @param {number[] | null} expand Pixels of the border: left, top, right, bottom.
   */
  setSource(source, expand) {
    if (source === this.#source && String(expand) === String(this.#expand)) return;
    this.#expand = expand;
    const fresh = (source === "none") !== (this.#source === "none");
    this.#source = source;
    byId("strength-field", HTMLElement).hidden = source === "none";
    byId("shape-own", HTMLElement).hidden = source === "none";
    if (fresh) {
      this.#ownStrength = false;
      if (source !== "none") this.#shape = chosenShape();
      setShape(source === "none" ? this.#shape : "own");
    }
    if (source !== "none" && !this.#ownStrength) putValue(strength, STRENGTH[source]);
    onlyMasked.disabled = source === "none" || source === "image";
    this.#changed();
  }

  /** The prompts of a form with one prompt per line; null if the whole text is one prompt. */
  get prompts() {
    if (!eachLine.checked) return null;
    return prompt.value.split("\n").map((line) => line.trim()).filter(Boolean);
  }

  /** Options without a field. */
  get further() {
    return this.#further;
  }

  /** Sentences about settings that the last apply() changed to the nearest possible value. */
  get adjusted() {
    return this.#adjusted;
  }

  /**
   * Set an option that has no field.
   * @param {string} name
   * @param {unknown} value Undefined removes it.
   */
  setFurther(name, value) {
    const { [name]: _, ...others } = this.#further;
    this.#further = value === undefined ? others : { ...others, [name]: value };
    this.#edited(furtherLine);
  }

  /**
   * Set the limits of the server, which may be lower than those of the API.
   * @param {Record<string, {maximum?: number}>} schemas Option -> its schema.
   */
  setMaxima(schemas) {
    for (const field of [count, steps]) {
      const maximum = schemas[field.name]?.maximum;
      if (maximum !== undefined) field.max = String(maximum);
    }
    stepsSlider.max = String(Math.min(SLIDER_STEPS, Number(steps.max)));
    stepsSlider.value = steps.value;
  }

  /** @param {boolean} sending True disables the button, which shows that a request is being sent. */
  setSending(sending) {
    if (sending === this.#sending) return;
    this.#sending = sending;
    byId("generate", HTMLButtonElement).setAttribute("aria-disabled", String(sending));
    this.#describe();
  }

  /** @param {{control: boolean, references: boolean}} extra Which further images the user has chosen. */
  setExtra(extra) {
    this.#extra = extra;
    this.#changed();
  }

  /**
   * Set the seed that the button for the last seed restores.
   * @param {string} last
   */
  setLastSeed(last) {
    this.#lastSeed = last;
    seedAgain.disabled = false;
  }

  /**
   * The current settings, without a size if the image to edit keeps its own.
   * @returns {Settings}
   */
  read() {
    const edits = this.#source !== "none";
    const further = this.#furtherNow;
    const part = this.#onlyMasked;
    // The noise levels in `sigmas` determine the steps and the schedule.
    const leveled = "sigmas" in further;
    /** @type {Settings} */
    const all = {
      model: model.value,
      prompt: prompt.value,
      negative_prompt: negative.value.trim() ? negative.value : undefined,
      size: this.#size(),
      n: numberOf(count),
      seed: seedOf(seed.value),
      sample_steps: leveled ? undefined : numberOf(steps),
      sampler: sampler.value,
      schedule: leveled ? undefined : schedule.value,
      cfg_scale: numberOf(cfg),
      guidance: this.model?.capabilities.guidance ? numberOf(guidance) : undefined,
      strength: edits ? numberOf(strength) : undefined,
      only_masked: part || undefined,
      only_masked_padding: part ? numberOf(padding) : undefined,
      expand: this.#expand ?? undefined,
      priority: priority.value === "normal" ? undefined : priority.value,
      ...further,
    };
    return /** @type {Settings} */ (withoutGaps(all));
  }

  /**
   * Put settings into the fields. Fields without a setting keep their values. All options without
   * a field are replaced.
   * @param {Settings} settings
   * @returns {string[]} Names of the settings that cannot be applied.
   */
  apply(settings) {
    const unfit = [];
    this.#adjusted = [];
    if (settings.prompt?.includes("\n")) eachLine.checked = false;
    if (settings.model && settings.model !== model.value) {
      if (this.#choose(model, settings.model)) this.#takeModel();
      else unfit.push(`the model ${settings.model}`);
    }
    if (settings.only_masked !== undefined) onlyMasked.checked = settings.only_masked;
    for (const field of [prompt, negative, count, seed, steps, cfg, guidance, padding]) {
      const value = settings[/** @type {keyof Settings} */ (field.name)];
      if (value !== undefined && value !== null) putValue(field, value);
    }
    for (const field of [sampler, schedule, priority]) {
      const value = settings[/** @type {keyof Settings} */ (field.name)];
      if (typeof value === "string" && !this.#choose(field, value)) {
        unfit.push(`the ${field.name} ${value}`);
      }
    }
    if (settings.guidance !== undefined && !this.model?.capabilities.guidance) {
      unfit.push("the distilled guidance");
    }
    if (settings.size) this.#takeSize(settings.size);
    if (settings.strength !== undefined && this.#source !== "none") {
      putValue(strength, settings.strength);
      this.#ownStrength = true;
    }
    this.#further = Object.fromEntries(
      Object.entries(settings).filter(([name]) => !hasField(name)),
    );
    this.#changed();
    return [...unfit, ...missingImages(settings, this.#source, this.#extra)];
  }

  /**
   * Replace all settings except prompt and seed with the model's defaults and the given settings.
   * @param {Settings} settings
   * @returns {string[]} Names of the settings that cannot be applied.
   */
  replace(settings) {
    if (settings.model) this.#choose(model, settings.model);
    this.#takeModel();
    onlyMasked.checked = false;
    padding.value = padding.defaultValue;
    if (this.#source !== "none") {
      setShape("own");
      putValue(strength, STRENGTH[this.#source]);
      this.#ownStrength = false;
    }
    return this.apply(settings);
  }

  /**
   * The settings that replace() would leave in the form: those that have an effect on the current
   * image, and defaults of the options that depend on the image.
   * @param {Settings} settings
   * @returns {Settings}
   */
  effective(settings) {
    const source = this.#source;
    const defaults =
      source === "none" ? { size: this.model?.defaults.size } : { strength: STRENGTH[source] };
    return /** @type {Settings} */ ({ ...defaults, ...this.#usable(settings) });
  }

  /** Fire "generate" if the fields are valid; show the first error otherwise. */
  generate() {
    if (this.#sending) return;
    this.clearErrors();
    if (!prompt.value.trim()) {
      this.showError("prompt", "Enter a prompt.");
      return;
    }
    this.wanted = !this.model;
    if (this.wanted) {
      this.dispatchEvent(new Event("lack"));
      return;
    }
    const wrong = [...form.elements].find(
      (element) => element instanceof HTMLInputElement && element.offsetParent && fault(element),
    );
    if (wrong instanceof HTMLInputElement) {
      this.showError(fieldOf(wrong), fault(wrong), { culprit: wrong });
    } else this.dispatchEvent(new Event("generate"));
  }

  /**
   * Show an error beside its field, or beside the button if it has none.
   * @param {string | null} param Name of the option.
   * @param {string} message
   * @param {{culprit?: HTMLElement, focus?: boolean}} [how] `culprit`: the invalid control of a
   *   field with several controls. `focus`: whether the control gets the focus.
   */
  showError(param, message, { culprit, focus = true } = {}) {
    this.wanted = false;
    const name = this.#fieldFor(param);
    const field = name && form.querySelector(`.field[data-field="${CSS.escape(name)}"]`);
    if (!(field instanceof HTMLElement) || field.hidden) {
      formError.textContent = message;
      return;
    }
    if (more.contains(field)) more.open = true;
    const line = field.querySelector(":scope > .error");
    // "Further options" holds several options, so the message keeps the name of the option.
    if (line) line.textContent = name === "further" ? message : sentence(message);
    const control = culprit ?? controlOf(field);
    control?.setAttribute("aria-invalid", "true");
    if (focus) control?.focus();
  }

  /** Remove the error beside the button, since the state of the server has changed. */
  clearTrouble() {
    formError.textContent = "";
  }

  clearErrors() {
    for (const line of form.querySelectorAll('[role="alert"]')) line.textContent = "";
    for (const control of form.querySelectorAll("[aria-invalid]")) {
      control.removeAttribute("aria-invalid");
    }
  }

  /** @param {string | null} param */
  #fieldFor(param) {
    const name = param?.split(".")[0] ?? "";
    if (Object.hasOwn(this.#further, name)) return "further";
    const image = { mask: "image", only_masked: "image", expand: "image" };
    return { width: "size", height: "size", ...image }[name] ?? name;
  }

  get #onlyMasked() {
    return !onlyMasked.disabled && onlyMasked.checked;
  }

  get #furtherNow() {
    return this.#usable(this.#further);
  }

  /** @param {Record<string, unknown>} options */
  #usable(options) {
    const usable = withImages(options, this.#source, this.#extra);
    // These edits keep the size of the image, so `fit` has no effect.
    if (this.#onlyMasked || this.#expand) delete usable.fit;
    return usable;
  }

  /** @param {Element} target */
  #edited(target) {
    if (target === model) this.#takeModel();
    if (target === strength) this.#ownStrength = true;
    if (target === steps || target === schedule) delete this.#further.sigmas;
    this.clearTrouble();
    this.#clearError(target);
    this.#changed();
  }

  /** @param {Element} target */
  #clearError(target) {
    const field = target.closest(".field[data-field]");
    const line = field?.querySelector(":scope > .error");
    if (line) line.textContent = "";
    field?.querySelector("[aria-invalid]")?.removeAttribute("aria-invalid");
  }

  #changed() {
    padding.disabled = !this.#onlyMasked;
    this.#describe();
    if (this.model) keep("settings", JSON.stringify(this.read()));
    keep("each_line", JSON.stringify(eachLine.checked));
    this.dispatchEvent(new Event("change"));
  }

  /** Apply the limits and defaults of the chosen model. */
  #takeModel() {
    const chosen = this.model;
    if (!chosen) return;
    const { samplers, schedules } = chosen.capabilities;
    sampler.replaceChildren(...samplers.map((name) => make("option", { value: name }, name)));
    schedule.replaceChildren(...schedules.map((name) => make("option", { value: name }, name)));
    byId("guidance-field", HTMLElement).hidden = !chosen.capabilities.guidance;
    const { min, max, multiple } = chosen.size;
    for (const side of [width, height]) {
      side.min = String(Math.ceil(min / multiple) * multiple);
      side.max = String(Math.floor(max / multiple) * multiple);
      side.step = String(multiple);
    }
    this.#takeDefaults();
  }

  #takeDefaults() {
    const defaults = this.model?.defaults;
    if (!defaults) return;
    putValue(steps, defaults.sample_steps);
    putValue(cfg, defaults.cfg_scale);
    putValue(guidance, "");
    this.#further = {};
    sampler.value = defaults.sampler;
    schedule.value = defaults.schedule;
    priority.value = "normal";
    this.#takeSize(defaults.size);
  }

  /** @param {string} wanted "128x128". */
  #takeSize(wanted) {
    const sides = wanted.split("x");
    const size = `${nearest(width, sides[0])}x${nearest(height, sides[1])}`;
    if (size !== wanted) {
      const [from, to] = [wanted, size].map((text) => text.replace("x", " × "));
      this.#adjusted.push(`This model cannot generate ${from}; the size is now ${to}.`);
    }
    const known = ["square", "wide", "tall"].find((shape) => this.#presetSize(shape) === size);
    [width.value, height.value] = size.split("x");
    setShape(known ?? "free");
  }

  #ownSize() {
    if (this.#onlyMasked) return "The masked part at the default size of the model.";
    return this.#expand
      ? "The size of the image with its border, or the nearest possible."
      : "The size of the image, or the nearest possible.";
  }

  /** @returns {string | undefined} */
  #size() {
    const shape = chosenShape();
    if (shape === "own") return undefined;
    return shape === "free" ? `${width.value}x${height.value}` : this.#presetSize(shape);
  }

  /**
   * The size of a shape, with about as many pixels as the model's default size.
   * @param {string} shape
   */
  #presetSize(shape) {
    const chosen = this.model;
    if (!chosen) return "";
    const [w, h] = chosen.defaults.size.split("x").map(Number);
    if (shape === "square" && w === h) return chosen.defaults.size;
    const ratio = { wide: WIDE, tall: 1 / WIDE }[shape] ?? 1;
    const fit = (/** @type {number} */ side) => {
      const { min, max, multiple } = chosen.size;
      const whole = Math.round(side / multiple) * multiple;
      return Math.min(Math.max(whole, Math.ceil(min / multiple) * multiple), max);
    };
    return `${fit(Math.sqrt(w * h * ratio))}x${fit(Math.sqrt((w * h) / ratio))}`;
  }

  /** Update the texts beside the fields. */
  #describe() {
    const { prompts } = this;
    const label = prompts?.length
      ? `${LABELS[this.#source]}: ${counted(prompts.length, "prompt")}`
      : LABELS[this.#source];
    byId("generate-label", HTMLElement).textContent = this.#sending ? "Sending…" : label;
    const chosen = this.model;
    if (!chosen) return;
    const hint = byId("model-hint", HTMLElement);
    hint.textContent = chosen.error ?? chosen.description ?? "";
    hint.classList.toggle("error", Boolean(chosen.error));
    const free = chosenShape() === "free";
    byId("free-size", HTMLElement).hidden = !free;
    const { multiple } = chosen.size;
    byId("size-hint", HTMLElement).textContent = free
      ? `${width.min} to ${width.max} pixels, in steps of ${multiple}.`
      : (this.#size()?.replace("x", " × ") ?? this.#ownSize());
    const further = Object.entries(this.#furtherNow);
    furtherField.hidden = further.length === 0;
    this.#showChips(further);
    byId("digest", HTMLElement).textContent =
      `${steps.value} steps · ${sampler.value} · ${schedule.value} · cfg ${cfg.value}`;
  }

  /** @param {[string, unknown][]} further */
  #showChips(further) {
    furtherLine.replaceChildren(
      ...further.map(([name, value]) => {
        const text = `${name} ${said(value)}`;
        const drop = () => {
          this.setFurther(name, undefined);
          const rest = furtherLine.querySelector("button") ?? more.querySelector("summary");
          rest?.focus();
        };
        return make(
          "li",
          {},
          make("span", {}, text),
          make("button", { type: "button", click: drop, title: `Remove ${name}` },
            icon("close"), make("span", { class: "unseen" }, `Remove ${name}`)),
        );
      }),
    );
  }

  /**
   * @param {HTMLSelectElement} field
   * @param {string} value
   */
  #choose(field, value) {
    const known = [...field.options].some((option) => option.value === value);
    if (known) field.value = value;
    return known;
  }

  /**
   * @param {HTMLInputElement} field
   * @param {string} value
   */
  #put(field, value) {
    putValue(field, value);
    this.#edited(field);
  }
}

/** Values that the user typed before the models were loaded. @returns {FieldSettings} */
function typed() {
  const fields = [prompt, negative, count, seed, steps, cfg];
  const filled = fields.filter((field) => field.value !== field.defaultValue);
  return Object.fromEntries(filled.map((field) => [field.name, field.value]));
}

/** @returns {string} */
function chosenShape() {
  const chosen = form.querySelector('input[name="shape"]:checked');
  return chosen instanceof HTMLInputElement ? chosen.value : "square";
}

/** @param {string} shape */
function setShape(shape) {
  const radio = form.querySelector(`input[name="shape"][value="${shape}"]`);
  if (radio instanceof HTMLInputElement) radio.checked = true;
}

/**
 * Connect a slider, for pointers, with its number field, for keys and screen readers.
 * @param {Element} group
 */
function joinSlider(group) {
  const [slider, number] = group.querySelectorAll("input");
  slider.addEventListener("input", (event) => {
    event.stopPropagation();
    number.value = slider.value;
    number.dispatchEvent(new Event("input", { bubbles: true }));
  });
  number.addEventListener("input", () => {
    slider.value = number.value;
  });
}

/**
 * @param {HTMLInputElement | HTMLTextAreaElement} field
 * @param {unknown} value
 */
function putValue(field, value) {
  field.value = String(value);
  const slider = field.parentElement?.querySelector('input[type="range"]');
  if (slider instanceof HTMLInputElement) slider.value = field.value;
}

/**
 * Add a line for errors to a field; its control refers to it by aria-describedby.
 * @param {Element} field
 */
function giveErrorLine(field) {
  const name = field.getAttribute("data-field");
  const line = make("p", { class: "error", id: `${name}-error`, role: "alert" });
  field.append(line);
  const control = controlOf(field);
  const described = [control?.getAttribute("aria-describedby"), line.id].filter(Boolean);
  control?.setAttribute("aria-describedby", described.join(" "));
}

/**
 * @param {Element} field
 * @returns {HTMLElement | null}
 */
function controlOf(field) {
  return field.querySelector(
    'input:checked, input:not([type="range"], [type="radio"], [hidden]), select, textarea, button',
  );
}

/** @param {Element} control */
function fieldOf(control) {
  return control.closest(".field[data-field]")?.getAttribute("data-field") ?? null;
}

/**
 * The error of a field's value, as a sentence; empty if it is valid.
 * @param {HTMLInputElement} field
 */
function fault(field) {
  const { validity, min, max, step } = field;
  if (validity.valid && (field.value || field.type !== "number" || field.placeholder)) return "";
  if (field === seed) return "Enter a whole number of up to 19 digits, or none for a random seed.";
  const steps = step && step !== "any" && step !== "1" ? `, in steps of ${step}` : "";
  return max ? `Enter a number from ${min} to ${max}${steps}.` : `Enter a number from ${min}${steps}.`;
}

/**
 * The nearest length of a side that the model can generate.
 * @param {HTMLInputElement} side
 * @param {string} text
 */
function nearest(side, text) {
  const value = Number(text);
  const [min, max, step] = [side.min, side.max, side.step].map(Number);
  if (!text || !Number.isFinite(value) || !step) return text;
  return String(Math.min(Math.max(Math.round(value / step) * step, min), max));
}

/** @param {string} name Name of an option. */
function hasField(name) {
  return ["size", "expand", "mask_mode"].includes(name) || form.elements.namedItem(name) !== null;
}

/**
 * A seed without leading zeros, as JSON requires.
 * @param {string} text
 */
function seedOf(text) {
  return /^\d+$/.test(text) ? String(BigInt(text)) : undefined;
}

/** @param {HTMLInputElement} field */
function numberOf(field) {
  return field.value === "" ? undefined : Number(field.value);
}

/** @param {object} all */
function withoutGaps(all) {
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
}
