// Runs @ai-sdk/fireworks from npm against a server and prints JSON: node fireworks.mjs URL CHECK.
import { createFireworks } from "@ai-sdk/fireworks";
import { APICallError, generateImage } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false; // warnings go to stdout

const [url, check] = process.argv.slice(2);
const fireworks = createFireworks({ baseURL: `${url}/inference/v1`, apiKey: "some-key" });
const usual = { prompt: "a red circle", maxRetries: 0 };

const fields = ({ images, warnings }) => ({
  images: images.map(({ base64, mediaType }) => ({ base64, mediaType })),
  warnings,
});

const generate = async (model, options) =>
  fields(await generateImage({ ...usual, model: fireworks.image(model), ...options }));

const checks = {
  ratio: () => generate("accounts/fireworks/models/default", { aspectRatio: "16:9", seed: 7 }),
  // The client uses the route image_generation for this model, and that route accepts sizes.
  size: () =>
    generate("accounts/fireworks/models/SSD-1B", {
      size: "128x64",
      providerOptions: { fireworks: { steps: 3, cfg_scale: 2, sampler: "K_DPMPP_2M" } },
    }),
  several: () => generate("accounts/fireworks/models/default", { n: 2, aspectRatio: "1:1" }),
  unknown: async () => {
    try {
      await generate("accounts/fireworks/models/flux-1-dev-fp8", {});
    } catch (error) {
      return { known: APICallError.isInstance(error), status: error.statusCode };
    }
    return null;
  },
};

console.log(JSON.stringify(await checks[check]()));
