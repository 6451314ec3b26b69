// Runs eventsource from npm against a server and prints JSON: node eventsource.mjs URL.
// The URL starts a generation. Every connection is cut after three events, so that the client has
// to reconnect to its job. It reconnects until the server responds with 204.
import { EventSource } from "eventsource";

const [url] = process.argv.slice(2);
const told = [];
let connections = 0;
let heard = () => {};

const impatient = async (address, init) => {
  connections += 1;
  const answer = await fetch(address, init);
  if (!answer.body) return answer;
  const reader = answer.body.getReader();
  let left = 3;
  heard = () => { left -= 1; };
  const body = new ReadableStream({
    async pull(controller) {
      const { done, value } = left > 0 ? await reader.read() : { done: true };
      if (!done) return controller.enqueue(value);
      reader.cancel();
      controller.close();
    },
  });
  return { url: answer.url, status: answer.status, redirected: false, headers: answer.headers, body };
};

const source = new EventSource(url, { fetch: impatient });
const names = ["queued", "progress", "preview", "image", "completed", "failed", "cancelled", "error"];
for (const name of names) {
  source.addEventListener(name, (event) => {
    if (event.data === undefined) return; // the client's own error event at each cut
    told.push({ name, id: event.lastEventId, data: JSON.parse(event.data) });
    heard();
  });
}
const closed = setInterval(() => {
  if (source.readyState !== EventSource.CLOSED) return;
  clearInterval(closed);
  console.log(JSON.stringify({ told, connections }));
}, 20);
