/** The one stream of events of this page. It comes back by itself after a restart of the server, and says so quietly. */

import { h, setText } from "./dom.js";

const FIRST_WAIT_S = 1;
const LONGEST_WAIT_S = 15;
const GRACE_MS = 1500; // a restart that is over before is not worth a word
const SAID_MS = 4000;
const HIDDEN_FOR_MS = 60_000; // a browser opens six connections to one server: hidden pages give theirs back

export class Events {
  /**
   * @param {HTMLElement} place where the state of the connection is shown
   * @param {{onjob: (job: object) => void, ondeleted: (id: string) => void, onslots: (slots: object) => void, onopen: () => void, onrefused: () => Promise<boolean>}} around
   *   onopen     the stream begins: the jobs that have not ended follow
   *   onrefused  the server does not give the stream; false ends the tries
   */
  constructor(place, around) {
    this.place = place;
    this.around = around;
    this.wait = FIRST_WAIT_S;
    document.addEventListener("visibilitychange", () => this.#shown());
    window.addEventListener("pagehide", () => this.#end());
    window.addEventListener("pageshow", (event) => event.persisted && this.wanted && this.open());
  }

  open() {
    this.#end();
    this.wanted = true;
    const source = new EventSource("/jobs/events");
    this.source = source;
    source.onopen = () => {
      this.wait = FIRST_WAIT_S;
      this.#say(true);
      this.around.onopen();
    };
    source.onmessage = (event) => this.around.onjob(JSON.parse(event.data));
    source.addEventListener("deleted", (event) => this.around.ondeleted(JSON.parse(event.data).id));
    source.addEventListener("slots", (event) => this.around.onslots(JSON.parse(event.data)));
    source.onerror = () => {
      this.#say(false);
      if (source.readyState === EventSource.CLOSED) this.#again();
    };
  }

  close() {
    this.wanted = false;
    this.#end();
    setText(this.place, "");
    this.lost = false;
  }

  #end() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  /** The browser has given up, as after an answer without a stream: try later, and more and more seldom. */
  #again() {
    this.#end();
    this.timer = setTimeout(async () => {
      if (await this.around.onrefused()) this.open();
    }, this.wait * 1000);
    this.wait = Math.min(LONGEST_WAIT_S, this.wait * 2);
  }

  #shown() {
    clearTimeout(this.hiding);
    if (!this.wanted) return;
    if (document.hidden) this.hiding = setTimeout(() => this.#end(), HIDDEN_FOR_MS);
    else if (!this.source) this.open();
  }

  #say(isOpen) {
    clearTimeout(this.saying);
    const wasLost = this.lost;
    this.lost = !isOpen;
    if (!isOpen) {
      this.saying = setTimeout(() => this.place.replaceChildren(h("span", { class: "lost" }, "Connection lost, trying again…")), wasLost ? 0 : GRACE_MS);
    } else if (wasLost && this.place.textContent) {
      setText(this.place, "Connected again");
      this.saying = setTimeout(() => setText(this.place, ""), SAID_MS);
    }
  }
}
