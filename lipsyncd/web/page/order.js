/** One order that is not sent yet: a picture, a voice, options, and the button that makes the video. */

import { Refusal, call } from "./api.js";
import { h, setText } from "./dom.js";
import { stemOf } from "./files.js";
import { CurlLine, Options } from "./options.js";
import { PicturePane } from "./picture.js";
import { VoicePane } from "./voice.js";

export class Order {
  /**
   * @param {{onsent: (order: Order, job: object) => void, onchange: () => void, onclosed: (order: Order) => void,
   *   needsKey: () => boolean}} around
   */
  constructor(around) {
    this.around = around;
    const changed = () => this.#changed();
    this.picture = new PicturePane(changed);
    this.voice = new VoicePane(changed);
    this.options = new Options(changed);
    this.curl = new CurlLine();
    this.note = h("p", { class: "note", role: "status" });
    this.start = h("button", { type: "button", class: "primary", onclick: () => this.send() }, "Make the video");
    this.close = h("button", { type: "button", class: "quiet", onclick: () => around.onclosed(this) }, "Clear");
    this.element = h("article", { class: "card order", "aria-label": "New video" },
      h("div", { class: "panes" }, this.picture.element, this.voice.element),
      h("div", { class: "foot" },
        h("div", { class: "folds" }, this.options.element, this.curl.element),
        this.note, h("div", { class: "row end" }, this.close, this.start)));
    this.#changed();
  }

  get isEmpty() {
    return this.picture.isEmpty && this.voice.isEmpty;
  }

  get isReady() {
    return this.picture.isReady && this.voice.isReady && !this.sending;
  }

  /** Fill the places of a pair. */
  take({ picture, sound }) {
    if (picture) this.picture.take(picture);
    if (sound) this.voice.take(sound);
  }

  /** Say why files were not taken. */
  refuse(message) {
    this.#say(message, true);
  }

  /** Send the order. Without its parts, say which one is missing. Sending it twice makes one job. */
  async send() {
    const missing = this.#missing();
    if (missing) return this.#say(missing, true);
    if (this.sending) return;
    this.sending = true;
    this.#changed();
    const body = this.#body();
    const text = JSON.stringify(body);
    if (this.sent?.text !== text) this.sent = { text, key: randomKey() };
    try {
      this.around.onsent(this, await call("POST", "/jobs", body, { "Idempotency-Key": this.sent.key }));
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      this.#say(refusal.message, true);
    } finally {
      this.sending = false;
      this.#changed();
    }
  }

  #missing() {
    if (this.picture.isEmpty) return "Add a picture first.";
    if (this.voice.isEmpty) return this.voice.speaks ? "Write a text first." : "Add a sound first, or a text.";
    if (this.picture.busy || this.voice.busy) return "The files are still on their way.";
    if (!this.picture.isReady) return "Use another picture first.";
    return this.voice.isReady ? "" : "Use another sound first.";
  }

  #body() {
    const { face } = this.picture;
    const name = this.picture.file ? { name: stemOf(this.picture.file.name) } : {};
    return { ...this.picture.fields(), ...this.voice.fields(), ...name, ...this.options.fields(), ...(face && { options: { face } }) };
  }

  #changed() {
    this.#say("");
    this.start.setAttribute("aria-disabled", String(!this.isReady));
    setText(this.start, this.sending ? "Sending…" : "Make the video");
    this.close.hidden = this.isEmpty;
    this.curl.show(this.#form(), this.around.needsKey());
    this.around.onchange();
  }

  /** The fields of the same order as a form. */
  #form() {
    const { picture, voice } = this;
    const image = picture.jobId ? { image_of: picture.jobId } : { image: `@${picture.file?.name ?? "anna.jpg"}` };
    const sound = voice.jobId ? { audio_of: voice.jobId } : { audio: `@${voice.file?.name ?? "hello.wav"}` };
    const options = picture.face ? { options: JSON.stringify({ face: picture.face }) } : {};
    return { ...image, ...(voice.speaks ? voice.spoken() : sound), ...this.options.fields(), ...options };
  }

  #say(text, wrong = false) {
    setText(this.note, text);
    this.note.classList.toggle("wrong", wrong);
  }
}

/** Without TLS a browser has no `randomUUID`. */
function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
