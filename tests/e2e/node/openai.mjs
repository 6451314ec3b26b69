// Runs openai from npm against a server and prints JSON: node openai.mjs URL FOLDER CHECK.
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const [url, folder, check] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "some-key", maxRetries: 0 });
const file = (name) => fs.createReadStream(`${folder}/${name}`);
const small = { prompt: "a red circle", size: "64x64", seed: 5, sample_steps: 4 };

// Events of a stream; `picture` is the image of an event.
async function events(stream) {
  const seen = [];
  for await (const { b64_json, ...event } of await stream) {
    seen.push({ ...event, picture: b64_json });
  }
  return seen;
}

async function failure(call) {
  try {
    await call();
  } catch (error) {
    const { status, code, param, type, message, requestID } = error;
    return { name: error.constructor.name, status, code, param, type, message, requestID };
  }
  return null;
}

const checks = {
  generate: () => client.images.generate({ ...small, n: 2, quality: "low", user: "me" }),
  edit_one: () => client.images.edit({ ...small, image: file("input.png"), strength: 0.5 }),
  edit_list: () => client.images.edit({ ...small, image: [file("input.png")] }),
  edit_several: () =>
    failure(() => client.images.edit({ ...small, image: [file("input.png"), file("input.png")] })),
  edit_mask: () =>
    client.images.edit({ ...small, image: file("input.png"), mask: file("mask.png") }),
  edit_buffer: async () => {
    const image = await toFile(fs.readFileSync(`${folder}/input.png`), "upload");
    return client.images.edit({ ...small, image });
  },
  variation: () => client.images.createVariation({ image: file("input.png"), size: "64x64" }),
  stream: async () => {
    const counts = [0, 1, 2, 3];
    const streams = [];
    for (const partial_images of counts) {
      const stream = client.images.generate({ ...small, stream: true, partial_images });
      streams.push(await events(stream));
    }
    return streams;
  },
  stream_edit: () =>
    events(
      client.images.edit({ ...small, image: file("input.png"), stream: true, partial_images: 2 }),
    ),
  stream_both: () =>
    events(client.images.generate({ ...small, stream: true, stream_options: { dialect: "both" } })),
  errors: async () => ({
    value: await failure(() => client.images.generate({ ...small, size: "9x64" })),
    image: await failure(async () =>
      client.images.edit({ ...small, image: await toFile(Buffer.from("text"), "a.png") }),
    ),
    model: await failure(() => client.images.generate({ ...small, model: "dall-e-9" })),
    stream: await failure(() =>
      events(client.images.generate({ ...small, stream: true, n: 11 })),
    ),
  }),
  crash: () =>
    failure(() => events(client.images.generate({ ...small, prompt: "crash=2", stream: true }))),
  plain_crash: () => failure(() => client.images.generate({ ...small, prompt: "crash=2" })),
  key: () => failure(() => client.models.list()),
};

console.log(JSON.stringify(await checks[check]()));
