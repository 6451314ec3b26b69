/** The present settings as code: what the form would send, ready to be run elsewhere. */

import { BASE } from "./api.js";
import { asFields } from "./extra-options.js";

/** @import {Settings} from "./form.js" */

/**
 * What the snippets are made of.
 * @typedef {object} Facts
 * @property {Settings} settings
 * @property {boolean} image There is an image to start from.
 * @property {boolean} mask There is a mask over it.
 * @property {boolean} key The server asks for a key.
 */

/** @type {Record<string, (facts: Facts) => string>} */
export const SNIPPETS = { curl, python, javascript };

/**
 * @param {Facts} facts
 * @returns {string}
 */
function curl({ settings, image, mask, key }) {
  const one = (settings.n ?? 1) === 1;
  const lines = [`curl -s ${quoted(at(image ? "v1/images/edits" : "v1/images/generations"))}`];
  if (key) lines.push('-H "Authorization: Bearer $SDSTREAM_CLIENT_KEY"');
  if (one) lines.push('-H "Accept: image/png"');
  if (image) {
    lines.push("-F image=@image.png");
    if (mask) lines.push("-F mask=@mask.png");
    for (const [name, value] of fields(settings, mask)) {
      lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    }
  } else {
    lines.push('-H "Content-Type: application/json"', `-d ${quoted(json(settings))}`);
  }
  return `${lines.join(" \\\n  ")} > ${one ? "picture.png" : "pictures.json"}`;
}

/**
 * @param {Facts} facts
 * @returns {string}
 */
function python({ settings, image, mask, key }) {
  const { model, prompt, size, n, ...extra } = settings;
  const call = [
    `model=${JSON.stringify(model)},`,
    ...(image ? ['image=open("image.png", "rb"),'] : []),
    ...(mask ? ['mask=open("mask.png", "rb"),'] : []),
    `prompt=${JSON.stringify(prompt)},`,
    ...(size ? [`size=${JSON.stringify(size)},`] : []),
    ...(n === undefined ? [] : [`n=${n},`]),
    `extra_body=${image ? textual(extra, mask) : json(extra, inPython)},`,
  ];
  return [
    "import base64",
    ...(key ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(at("v1"))}, api_key=${key ? 'os.environ["SDSTREAM_CLIENT_KEY"]' : '"unused"'})`,
    `answer = client.images.${image ? "edit" : "generate"}(`,
    ...call.map((line) => `    ${line}`),
    ")",
    "for number, image in enumerate(answer.data):",
    '    with open(f"picture-{number}.png", "wb") as file:',
    "        file.write(base64.b64decode(image.b64_json))",
  ].join("\n");
}

/**
 * @param {Facts} facts
 * @returns {string}
 */
function javascript({ settings, image, mask, key }) {
  const lines = [`const server = ${JSON.stringify(BASE.href)};`];
  if (key) {
    lines.push(
      "const headers = { Authorization: `Bearer ${key}` }; // your key",
      'const post = { method: "POST", headers };',
      "const { token } = await (await fetch(`${server}v1/tokens`, post)).json();",
    );
  }
  lines.push(...(image ? editing(settings, mask, key) : drawing(settings, key)));
  lines.push(
    'events.addEventListener("progress", ({ data }) => console.log(JSON.parse(data).progress));',
    'events.addEventListener("completed", ({ data }) => {',
    "  events.close();",
    "  for (const { url } of JSON.parse(data).images) {",
    "    const image = new Image();",
    `    image.src = ${key ? "`${url}?token=${token}`" : "url"};`,
    "    document.body.append(image);",
    "  }",
    "});",
  );
  return lines.join("\n");
}

/**
 * @param {Settings} settings
 * @param {boolean} key
 */
function drawing(settings, key) {
  const query = textual(settings, false).replace(/^{/, key ? "{token, " : "{");
  return [
    `const query = new URLSearchParams(${query});`,
    "const events = new EventSource(`${server}v1/images/generations?${query}`);",
  ];
}

/**
 * @param {Settings} settings
 * @param {boolean} mask
 * @param {boolean} key
 */
function editing(settings, mask, key) {
  const headers = `{ ${key ? "...headers, " : ""}Prefer: "respond-async" }`;
  return [
    "const body = new FormData();",
    `for (const [name, value] of Object.entries(${textual(settings, mask)})) body.append(name, value);`,
    'body.append("image", imageFile); // a File or Blob',
    ...(mask ? ['body.append("mask", maskFile);'] : []),
    "const answer = await fetch(`${server}v1/images/edits`, {",
    `  method: "POST", headers: ${headers}, body,`,
    "});",
    "const job = await answer.json();",
    `const events = new EventSource(job.events_url${key ? " + `?token=${token}`" : ""});`,
  ];
}

/**
 * @param {Settings} settings
 * @param {boolean} mask
 */
function fields(settings, mask) {
  return asFields(mask ? { ...settings, mask_mode: "luminance" } : settings);
}

/**
 * The fields of a form or a query, as an object of texts.
 * @param {Settings} settings
 * @param {boolean} mask
 */
function textual(settings, mask) {
  return json(Object.fromEntries(fields(settings, mask)), (text) => JSON.stringify(text));
}

/**
 * @param {Settings} settings
 * @param {(value: unknown, name: string) => string} [written]
 */
function json(settings, written = inJson) {
  const text = Object.entries(settings).map(([name, value]) => `"${name}": ${written(value, name)}`);
  return `{${text.join(", ")}}`;
}

/**
 * Seeds are text here; as numbers they stay exact where they are written by hand.
 * @param {unknown} value
 * @param {string} name
 */
function inJson(value, name) {
  return name === "seed" ? String(value) : JSON.stringify(value);
}

/**
 * @param {unknown} value
 * @param {string} name
 */
function inPython(value, name) {
  if (typeof value === "boolean") return value ? "True" : "False";
  return inJson(value, name);
}

/** @param {string} path */
function at(path) {
  return new URL(path, BASE).href;
}

/** @param {string} text */
function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
