/** Writes the current settings as code that sends the same request. */

import { BASE } from "./api.js";
import { asFields } from "./extra-options.js";

/** @import {Settings} from "./form.js" */

/**
 * What the snippets contain.
 * @typedef {object} Facts
 * @property {Settings} settings
 * @property {string[]} images Names of the image files to upload.
 * @property {boolean} mask True if the first image has a mask.
 * @property {string | null} control Name of the control image's file.
 * @property {boolean} key True if the server requires a key.
 */

/** @type {Record<string, (facts: Facts) => string>} */
export const SNIPPETS = { curl, python, javascript, node };

const MASK = "mask.png";

/**
 * The file fields of a request: pairs of the field's name and the file's name.
 * @param {Facts} facts
 * @returns {[string, string][]}
 */
function filesOf({ images, mask, control }) {
  return [
    ...images.map((name) => /** @type {[string, string]} */ (["image", name])),
    ...(mask ? [/** @type {[string, string]} */ (["mask", MASK])] : []),
    ...(control ? [/** @type {[string, string]} */ (["control", control])] : []),
  ];
}

/** @param {Facts} facts */
function pathOf({ images }) {
  return images.length ? "v1/images/edits" : "v1/images/generations";
}

/** @param {Settings} settings */
function endingOf(settings) {
  return String(settings.output_format ?? "png");
}

/**
 * @param {Facts} facts
 * @returns {string}
 */
function curl(facts) {
  const { settings, mask, key } = facts;
  const one = (settings.n ?? 1) === 1;
  const files = filesOf(facts);
  const lines = [`curl -sS --fail-with-body ${quoted(at(pathOf(facts)))}`];
  if (key) lines.push('-H "Authorization: Bearer $SDSTREAM_CLIENT_KEY"');
  if (one) lines.push(`-H "Accept: image/${endingOf(settings)}"`);
  for (const [field, name] of files) {
    lines.push(`-F ${quoted(`${field}=@"${name.replace(/[\\"]/g, "\\$&")}"`)}`);
  }
  if (files.length) {
    for (const [name, value] of fields(settings, mask)) {
      lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
    }
  } else {
    lines.push('-H "Content-Type: application/json"', `-d ${quoted(json(settings))}`);
  }
  lines.push(`-o ${one ? `image.${endingOf(settings)}` : "images.json"}`);
  return lines.join(" \\\n  ");
}

/**
 * @param {Facts} facts
 * @returns {string}
 */
function python(facts) {
  const { settings, images, mask, key, control } = facts;
  if (control) return plainPython(facts);
  const { model, prompt, size, n, ...extra } = settings;
  const opened = images.map((name) => `open(${JSON.stringify(name)}, "rb")`);
  const call = [
    `model=${JSON.stringify(model)},`,
    ...(opened.length === 1 ? [`image=${opened[0]},`] : []),
    ...(opened.length > 1 ? [`image=[${opened.join(", ")}],`] : []),
    ...(mask ? [`mask=open("${MASK}", "rb"),`] : []),
    `prompt=${JSON.stringify(prompt)},`,
    ...(size ? [`size=${JSON.stringify(size)},`] : []),
    ...(n === undefined ? [] : [`n=${n},`]),
    'response_format="b64_json",',
    `extra_body=${images.length ? textual(extra, mask) : json(extra, inPython)},`,
  ];
  return [
    "import base64",
    ...(key ? ["import os"] : []),
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(at("v1"))}, api_key=${key ? 'os.environ["SDSTREAM_CLIENT_KEY"]' : '"unused"'})`,
    `answer = client.images.${images.length ? "edit" : "generate"}(`,
    ...call.map((line) => `    ${line}`),
    ")",
    "for number, image in enumerate(answer.data):",
    `    with open(f"image-{number}.${endingOf(settings)}", "wb") as file:`,
    "        file.write(base64.b64decode(image.b64_json))",
  ].join("\n");
}

/**
 * Python code for a request with a control image, which OpenAI's library cannot send.
 * @param {Facts} facts
 */
function plainPython(facts) {
  const { settings, mask, key } = facts;
  const files = filesOf(facts).map(
    ([field, name]) => `("${field}", open(${JSON.stringify(name)}, "rb"))`,
  );
  return [
    "import base64",
    ...(key ? ["import os"] : []),
    "",
    "import requests",
    "",
    "answer = requests.post(",
    `    ${JSON.stringify(at(pathOf(facts)))},`,
    ...(key ? ['    headers={"Authorization": "Bearer " + os.environ["SDSTREAM_CLIENT_KEY"]},'] : []),
    `    data=${textual(settings, mask)},`,
    `    files=[${files.join(", ")}],`,
    ")",
    "answer.raise_for_status()",
    'for number, image in enumerate(answer.json()["data"]):',
    `    with open(f"image-{number}.${endingOf(settings)}", "wb") as file:`,
    '        file.write(base64.b64decode(image["b64_json"]))',
  ].join("\n");
}

/**
 * Code for a web page, which logs the progress and appends the images.
 * @param {Facts} facts
 * @returns {string}
 */
function javascript(facts) {
  const { settings, key } = facts;
  const files = filesOf(facts);
  const lines = [`const server = ${JSON.stringify(BASE.href)};`];
  if (key) {
    lines.push(
      'const headers = { Authorization: `Bearer ${prompt("API key")}` };',
      'const post = { method: "POST", headers };',
      "const { token } = await (await fetch(`${server}v1/tokens`, post)).json();",
    );
  }
  lines.push(...(files.length ? uploading(facts, files) : streaming(settings, key)));
  lines.push(
    'events.addEventListener("progress", ({ data }) => console.log(JSON.parse(data).progress));',
    'events.addEventListener("failed", ({ data }) => {',
    "  events.close();",
    "  console.error(JSON.parse(data).error.message);",
    "});",
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
function streaming(settings, key) {
  const query = textual(settings, false).replace(/^{/, key ? "{token, " : "{");
  return [
    `const query = new URLSearchParams(${query});`,
    "const events = new EventSource(`${server}v1/images/generations?${query}`);",
  ];
}

/**
 * @param {Facts} facts
 * @param {[string, string][]} files
 */
function uploading(facts, files) {
  const { settings, mask, key } = facts;
  const headers = `{ ${key ? "...headers, " : ""}Prefer: "respond-async" }`;
  return [
    "// A page cannot read a file by its name: the user has to choose it.",
    "const chosen = (name) => new Promise((resolve) => {",
    '  const input = Object.assign(document.createElement("input"), { type: "file" });',
    '  const label = document.createElement("label");',
    "  label.append(`${name} `, input);",
    "  input.onchange = () => { label.remove(); resolve(input.files[0]); };",
    "  document.body.prepend(label);",
    "});",
    "const body = new FormData();",
    `for (const [name, value] of Object.entries(${textual(settings, mask)})) body.append(name, value);`,
    ...files.map(([field, name]) => `body.append("${field}", await chosen(${JSON.stringify(name)}));`),
    `const answer = await fetch(\`\${server}${pathOf(facts)}\`, {`,
    `  method: "POST", headers: ${headers}, body,`,
    "});",
    "const job = await answer.json();",
    "if (job.error) throw new Error(job.error.message);",
    `const events = new EventSource(job.events_url${key ? " + `?token=${token}`" : ""});`,
  ];
}

/**
 * Code for Node.js 18 and later, as a module (.mjs).
 * @param {Facts} facts
 * @returns {string}
 */
function node(facts) {
  const { settings, mask, key } = facts;
  const files = filesOf(facts);
  const head = [
    ...(key ? ["Authorization: `Bearer ${process.env.SDSTREAM_CLIENT_KEY}`"] : []),
    ...(files.length ? [] : ['"Content-Type": "application/json"']),
  ];
  const body = files.length
    ? [
        "const body = new FormData();",
        `for (const [name, value] of Object.entries(${textual(settings, mask)})) body.append(name, value);`,
        ...files.map(([field, name]) => {
          const text = JSON.stringify(name);
          return `body.append("${field}", new Blob([await readFile(${text})]), ${text});`;
        }),
      ]
    : [`const body = ${JSON.stringify(json(settings))};`];
  return [
    `import { ${files.length ? "readFile, " : ""}writeFile } from "node:fs/promises";`,
    "",
    ...body,
    `const answer = await fetch(${JSON.stringify(at(pathOf(facts)))}, {`,
    `  method: "POST", headers: { ${head.join(", ")} }, body,`,
    "});",
    "const { data, error } = await answer.json();",
    "if (error) throw new Error(error.message);",
    "for (const [number, image] of data.entries()) {",
    `  await writeFile(\`image-\${number}.${endingOf(settings)}\`, Buffer.from(image.b64_json, "base64"));`,
    "}",
  ].join("\n");
}

/**
 * @param {Settings} settings
 * @param {boolean} mask
 */
function fields(settings, mask) {
  return asFields(mask ? { ...settings, mask_mode: "luminance" } : settings);
}

/**
 * The fields of a form or a query as an object literal whose values are strings.
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
 * A value as JSON. The page holds a seed as text, which keeps all digits of the number.
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
