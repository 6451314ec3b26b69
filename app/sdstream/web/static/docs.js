/** The API reference: Swagger UI for the server's OpenAPI document, with the page's API key. */

import { recall } from "./storage.js";

const { SwaggerUIBundle } = /** @type {any} */ (window);

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#reference",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  displayRequestDuration: true,
  // Null disables validation of the document by Swagger's online service.
  validatorUrl: null,
  requestInterceptor: (/** @type {{headers: Record<string, string>}} */ request) => {
    const key = recall("key");
    if (key && !request.headers.Authorization) request.headers.Authorization = `Bearer ${key}`;
    return request;
  },
});
