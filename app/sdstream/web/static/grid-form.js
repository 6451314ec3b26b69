/** The form of a comparison: two axes with their values. */

import { byId, make } from "./dom.js";
import { counted, labelOf } from "./format.js";

/** @import {Model} from "./api.js" */
/** @import {Axis} from "./grid.js" */
/** @import {Settings} from "./form.js" */

export const MOST_CELLS = 64;
const AXES = ["sampler", "schedule", "sample_steps", "cfg_scale", "strength", "seed", "model", "word"];
/** @type {Record<string, string>} */
const USUAL = {
  sample_steps: "4, 8, 12, 20",
  cfg_scale: "1, 3, 5, 7",
  strength: "0.25, 0.5, 0.75, 1",
  seed: "1, 2, 3, 4",
};
const NUMBERS = ["sample_steps", "cfg_scale", "strength", "seed"];

const error = byId("compare-error", HTMLElement);
const button = byId("compare-go", HTMLButtonElement);

/** Fires "compare" when the user wants the grid. */
export class GridForm extends EventTarget {
  /** @type {Model[]} */
  models = [];
  /** @type {Model | undefined} */
  #model;
  #edits = false;
  /** True once the default values were set; a field that the user empties then stays empty. */
  #begun = false;

  constructor() {
    super();
    for (const name of ["x", "y"]) {
      const select = selectOf(name);
      const none = name === "y" ? [make("option", { value: "" }, "None")] : [];
      select.replaceChildren(
        ...none,
        ...AXES.map((axis) => make("option", { value: axis }, axis === "word" ? "Word of the prompt" : labelOf(axis))),
      );
      select.addEventListener("change", () => {
        valuesOf(name).value = this.#usual(select.value);
        error.textContent = "";
        this.#describe();
      });
      valuesOf(name).addEventListener("input", () => {
        error.textContent = "";
        this.#describe();
      });
      valuesOf(name).addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || event.ctrlKey || event.metaKey || event.isComposing) return;
        // Enter would submit the form and so generate a single image.
        event.preventDefault();
        this.dispatchEvent(new Event("compare"));
      });
    }
    button.addEventListener("click", () => this.dispatchEvent(new Event("compare")));
  }

  /**
   * @param {Model | undefined} model The chosen model.
   * @param {boolean} edits True if there is an image to start from.
   */
  show(model, edits) {
    this.#model = model;
    this.#edits = edits;
    for (const name of ["x", "y"]) {
      const option = selectOf(name).querySelector('option[value="strength"]');
      if (option instanceof HTMLOptionElement) option.disabled = !edits;
    }
    if (model && !this.#begun) {
      this.#begun = true;
      valuesOf("x").value = this.#usual(selectOf("x").value);
    }
    this.#describe();
  }

  /**
   * Read the axes; throws an Error with a message if they cannot be used.
   * @param {Settings} settings The settings that all cells share.
   * @returns {{across: Axis, down: Axis | null}}
   */
  read(settings) {
    const across = axisOf("x");
    const down = selectOf("y").value ? axisOf("y") : null;
    for (const axis of down ? [across, down] : [across]) check(axis, settings, this.#edits);
    if (down?.name === across.name) throw new Error("Choose two different axes.");
    const cells = across.values.length * (down?.values.length ?? 1);
    if (cells > MOST_CELLS) throw new Error(`A grid has at most ${MOST_CELLS} images; this one has ${cells}.`);
    return { across, down };
  }

  /** @param {string} text */
  showError(text) {
    error.textContent = text;
  }

  #describe() {
    for (const name of ["x", "y"]) {
      const word = selectOf(name).value === "word";
      valuesOf(name).placeholder = word ? "cat, dog, fox" : "values, separated by commas";
    }
    valuesOf("y").hidden = !selectOf("y").value;
    const cells = axisOf("x").values.length * (selectOf("y").value ? axisOf("y").values.length : 1);
    button.textContent = cells ? `Compare ${counted(cells, "image")}` : "Compare";
  }

  /** @param {string} axis */
  #usual(axis) {
    const { samplers = [], schedules = [] } = this.#model?.capabilities ?? {};
    const lists = { sampler: samplers, schedule: schedules, model: this.models.map(({ id }) => id) };
    const list = lists[/** @type {"model"} */ (axis)];
    return list ? list.slice(0, 4).join(", ") : (USUAL[axis] ?? "");
  }
}

/**
 * The settings of one cell.
 * @param {Settings} settings
 * @param {{axis: Axis, value: string}[]} chosen
 * @returns {Settings}
 */
export function cellOf(settings, chosen) {
  const cell = { ...settings };
  for (const { axis, value } of chosen) {
    if (axis.name === "word") {
      cell.prompt = (cell.prompt ?? "").replaceAll(axis.values[0], () => value);
    } else {
      const asNumber = NUMBERS.includes(axis.name) && axis.name !== "seed";
      Object.assign(cell, { [axis.name]: asNumber ? Number(value) : value });
    }
  }
  return cell;
}

/**
 * @param {Axis} axis
 * @param {Settings} settings
 * @param {boolean} edits
 */
function check({ name, values }, settings, edits) {
  const label = name === "word" ? "Word of the prompt" : labelOf(name);
  if (!values.length) throw new Error(`${label}: enter values, separated by commas.`);
  const wrong = NUMBERS.includes(name) && values.find((value) => !Number.isFinite(Number(value)));
  if (wrong) throw new Error(`${label}: '${wrong}' is not a number.`);
  if (name === "strength" && !edits) throw new Error("Strength needs an image to start from.");
  if (name === "word" && !settings.prompt?.includes(values[0])) {
    throw new Error(`The prompt does not contain '${values[0]}', the first word of the axis.`);
  }
}

/** @param {string} name "x" or "y". */
function axisOf(name) {
  const values = valuesOf(name).value.split(",").map((value) => value.trim()).filter(Boolean);
  return { name: selectOf(name).value, values: [...new Set(values)] };
}

/** @param {string} name */
function selectOf(name) {
  return byId(`compare-${name}`, HTMLSelectElement);
}

/** @param {string} name */
function valuesOf(name) {
  return byId(`compare-${name}-values`, HTMLInputElement);
}
