/** The API reference: Swagger UI on the server's OpenAPI document, with the key of the page. */

import { recall } from "./storage.js";

const { SwaggerUIBundle } = /** @type {any} */ (window);

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  // The document is not validated by a server elsewhere.
  validatorUrl: null,
  requestInterceptor: (/** @type {{headers: Record<string, string>}} */ request) => {
    const key = recall("key");
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
