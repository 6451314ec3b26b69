/** Explains LoRA tags in the prompt, which other programs use, and turns them into options. */

import { byId } from "./dom.js";
import { listed } from "./format.js";

const TAG = /<lora:([^:<>]+)(?::(-?[\d.]+))?[^<>]*>/gi;

const prompt = byId("prompt", HTMLTextAreaElement);
const hint = byId("prompt-hint", HTMLElement);
const text = byId("prompt-hint-text", HTMLElement);
const use = byId("use-loras", HTMLButtonElement);

/** Fires "use" with a list of {id, scale}, after removing the tags of these LoRAs from the prompt. */
export class LoraTags extends EventTarget {
  /** Names of the server's LoRAs. @type {string[]} */
  #known = [];

  constructor() {
    super();
    use.addEventListener("click", () => this.#use());
  }

  /** @param {string[]} known Names of the server's LoRAs. */
  show(known) {
    this.#known = known;
    const named = [...prompt.value.matchAll(TAG)].map(([, name]) => name);
    const missing = named.filter((name) => !known.includes(name));
    hint.hidden = named.length === 0;
    use.hidden = missing.length === named.length;
    text.textContent = missing.length
      ? `This server has no LoRA ${listed(missing)}. Remove the tag from the prompt.`
      : "LoRA tags in a prompt have an effect only if the server’s operator allows them.";
  }

  #use() {
    /** @type {{id: string, scale: number}[]} */
    const chosen = [];
    prompt.value = prompt.value.replace(TAG, (tag, id, scale) => {
      if (!this.#known.includes(id)) return tag;
      chosen.push({ id, scale: scale === undefined ? 1 : Number(scale) });
      return "";
    }).replace(/[ \t]{2,}/g, " ").trim();
    this.dispatchEvent(new CustomEvent("use", { detail: chosen }));
    prompt.focus();
  }
}
