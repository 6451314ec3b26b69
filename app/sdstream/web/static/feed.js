/** A job's events over EventSource, which reconnects automatically. */

import { api, parse } from "./api.js";

const NAMES = ["queued", "progress", "preview", "image", "completed", "failed", "cancelled"];

export class Feed {
  /** @type {EventSource | null} */
  #source = null;
  #last = "";
  #closed = false;
  #path;
  #on;

  /**
   * @param {string} path
   * @param {{event: (name: string, data: any) => void, rejected: () => void}} on `event` is called
   *   with each event. `rejected` is called when the browser gives up, as after an expired token or
   *   a proxy's 502; open() then continues after the last event.
   */
  constructor(path, on) {
    this.#path = path;
    this.#on = on;
  }

  async open() {
    let address;
    try {
      /** @type {Record<string, string>} */
      const query = this.#last ? { last_event_id: this.#last } : {};
      address = await api.address(this.#path, query);
    } catch {
      if (!this.#closed) this.#on.rejected();
      return;
    }
    if (this.#closed) return;
    this.#source?.close();
    this.#source = new EventSource(address);
    this.#source.onerror = () => this.#failed();
    for (const name of NAMES) {
      this.#source.addEventListener(name, (event) => {
        this.#last = event.lastEventId || this.#last;
        this.#on.event(name, parse(event.data));
      });
    }
  }

  close() {
    this.#closed = true;
    this.#source?.close();
  }

  #failed() {
    if (this.#source?.readyState === EventSource.CLOSED) {
      api.dropToken();
      this.#on.rejected();
    } else {
      // EventSource reconnects automatically. This check makes the page show a server that is gone.
      api.look();
    }
  }
}
