/** The filter of the gallery: words, model, state, days, favorites. */

import { byId, make } from "./dom.js";

/** @import {Job} from "./jobs.js" */

const ENDED = "completed,failed,cancelled";
const DAY_S = 86_400;
const TYPING_MS = 250;

const search = byId("search", HTMLInputElement);
const model = byId("filter-model", HTMLSelectElement);
const status = byId("filter-status", HTMLSelectElement);
const since = byId("filter-since", HTMLInputElement);
const until = byId("filter-until", HTMLInputElement);
const favorite = byId("filter-favorite", HTMLInputElement);
const clear = byId("filter-clear", HTMLButtonElement);
const fields = [search, model, status, since, until];

/** True if a filter is set. */
export function filtersSet() {
  return favorite.checked || fields.some((field) => field.value.trim() !== "");
}

/** The filter as the query of GET /v1/jobs. */
export function filterQuery() {
  const query = new URLSearchParams({ status: status.value || ENDED });
  if (search.value.trim()) query.set("q", search.value.trim());
  if (model.value) query.set("model", model.value);
  if (favorite.checked) query.set("favorite", "true");
  if (since.value) query.set("since", String(midnight(since.value)));
  if (until.value) query.set("until", String(midnight(until.value) + DAY_S));
  return query;
}

/**
 * True for a job that matches the filter.
 * @param {Job} job
 */
export function matches(job) {
  const prompt = job.parameters.prompt.toLowerCase();
  const words = search.value.toLowerCase().split(/\s+/);
  return (
    words.every((word) => prompt.includes(word)) &&
    (!model.value || model.value === job.parameters.model) &&
    (!status.value || status.value === job.status) &&
    (!favorite.checked || job.favorite) &&
    (!since.value || job.created >= midnight(since.value)) &&
    (!until.value || job.created < midnight(until.value) + DAY_S)
  );
}

/** @param {string[]} ids Ids of the server's models. */
export function setFilterModels(ids) {
  const { value } = model;
  model.replaceChildren(
    make("option", { value: "" }, "Any model"),
    ...ids.map((id) => make("option", { value: id }, id)),
  );
  model.value = ids.includes(value) ? value : "";
}

/** @param {() => void} act Called when the filter changes. */
export function onFilter(act) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const soon = () => {
    clear.hidden = !filtersSet();
    clearTimeout(timer);
    timer = setTimeout(act, TYPING_MS);
  };
  for (const field of [...fields, favorite]) field.addEventListener("input", soon);
  clear.addEventListener("click", () => {
    for (const field of fields) field.value = "";
    favorite.checked = false;
    search.focus();
    soon();
  });
}

/**
 * Midnight of a day in the browser's time zone, in Unix seconds.
 * @param {string} day "2026-01-31".
 */
function midnight(day) {
  const [year, month, date] = day.split("-").map(Number);
  return new Date(year, month - 1, date).getTime() / 1000;
}
