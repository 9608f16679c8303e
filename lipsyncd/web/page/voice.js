/** The place of the voice: a sound with its waveform, or a text that one of the server's voices speaks. */

import { Refusal, call, callForBlob, upload } from "./api.js";
import { fileButton, freshId, h, setText } from "./dom.js";
import { SOUND_TYPES } from "./files.js";
import { Player } from "./player.js";

const MOST_HEARD = 500; // characters that the server speaks to listen to

export class VoicePane {
  /** @param {() => void} onchange called when anything about the voice has changed */
  constructor(onchange) {
    this.onchange = onchange;
    this.player = new Player();
    this.note = h("p", { class: "note", role: "status" });
    this.bar = h("progress", { max: 1, "aria-label": "Upload of the sound", hidden: true });
    this.name = h("span", { class: "name" });
    this.stage = h("div", { class: "stage" });
    this.sound = h("div", { class: "fill" }, this.stage, this.bar,
      h("div", { class: "row" }, h("div", { class: "words" }, this.name), fileButton("Choose a sound", SOUND_TYPES, ([file]) => this.take(file))));
    this.text = h("textarea", { rows: 6, placeholder: "What the portrait says", "aria-label": "Text", maxLength: 10000, oninput: () => this.#edited() });
    const voice = freshId("voice");
    this.voice = h("select", { id: voice, onchange: () => this.#edited() }, h("option", { value: "" }, "Voice of the server"));
    this.listen = h("button", { type: "button", class: "plain", onclick: () => this.#listen() }, "Listen");
    this.heard = h("div", {});
    this.speech = h("div", { class: "fill", hidden: true }, this.text, this.heard,
      h("div", { class: "row" }, h("label", { for: voice, class: "unseen" }, "Voice"), this.voice, this.listen));
    this.element = h("div", { class: "pane", "data-pane": "sound", role: "group", "aria-label": "Voice" },
      h("div", { class: "row title" }, h("h2", {}, "Voice"), this.#choice()), this.sound, this.speech, this.note);
    this.clear();
  }

  #choice() {
    const name = freshId("kind");
    const radio = (label, speaks) => {
      const input = h("input", { type: "radio", name, class: "unseen", checked: !speaks, onchange: () => this.#turn(speaks) });
      if (speaks) this.textRadio = input;
      else this.soundRadio = input;
      return h("label", {}, input, h("span", {}, label));
    };
    return h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, "Where the voice comes from"), radio("Sound", false), radio("Text", true));
  }

  #turn(speaks) {
    this.hearing?.abort();
    this.speaks = speaks;
    this.sound.hidden = speaks;
    this.speech.hidden = !speaks;
    this.player.clear();
    this.#say("");
    if (speaks) this.#fillVoices();
    else if (this.file) this.#showSound();
    this.onchange();
  }

  get isEmpty() {
    return this.speaks ? !this.text.value.trim() : !this.file && !this.jobId;
  }

  get isReady() {
    return this.speaks ? Boolean(this.text.value.trim()) : Boolean(this.jobId || (this.answer && !this.fault));
  }

  clear() {
    this.stopping?.abort();
    this.hearing?.abort();
    Object.assign(this, { file: null, jobId: null, answer: null, fault: null, busy: false });
    this.player.clear();
    this.bar.hidden = true;
    this.stage.replaceChildren(h("div", { class: "empty" }, h("strong", {}, "Drop a voice"), h("span", {}, "a sound of up to ten minutes")));
    setText(this.name, "");
    this.#say("");
  }

  /** Use the sound or the text of an earlier job, which the server has kept. A text can be changed. */
  takeJob(job, made) {
    this.clear();
    if (made.text && Boolean(made.ssml) === made.text.trim().startsWith("<speak")) return void this.#takeText(made.text, made.voice);
    this.soundRadio.checked = true;
    this.#turn(false);
    this.clear();
    this.jobId = job.id;
    setText(this.name, `Voice of ${job.name}`);
    this.stage.replaceChildren(h("p", {}, "The voice of the earlier video"));
    this.onchange();
  }

  async #takeText(text, voice) {
    this.textRadio.checked = true;
    this.text.value = text;
    this.#turn(true);
    this.#edited();
    await this.#fillVoices();
    if (voice && ![...this.voice.options].some((option) => option.value === voice)) this.voice.append(h("option", { value: voice }, voice));
    this.voice.value = voice ?? "";
    this.onchange();
  }

  /** Show a file and send it. */
  async take(file) {
    this.soundRadio.checked = true;
    this.#turn(false);
    this.clear();
    const stopping = new AbortController();
    Object.assign(this, { file, stopping, busy: true });
    setText(this.name, file.name);
    this.bar.hidden = false;
    this.bar.value = 0;
    this.#showSound();
    this.onchange();
    try {
      const answer = await upload("/audios", "audio", file, (done) => done < 1 ? (this.bar.value = done) : this.bar.removeAttribute("value"), stopping.signal);
      if (this.file !== file) return;
      this.answer = answer;
      this.player.length = answer.duration;
      if (!this.player.canPlay) this.#say("This browser cannot play this kind of sound. The server can use it.");
    } catch (refusal) {
      if (this.file !== file || !(refusal instanceof Refusal)) return;
      this.fault = refusal.message;
      this.#say(refusal.message, true);
    } finally {
      if (this.file === file) {
        this.busy = false;
        this.bar.hidden = true;
        this.onchange();
      }
    }
  }

  /** The fields of a job that name this voice. */
  fields() {
    if (this.jobId && !this.speaks) return { audio_of: this.jobId };
    if (!this.speaks) return { audio_url: this.answer.url };
    return this.spoken();
  }

  /** The text with its voice; a text that begins as SSML is SSML. */
  spoken() {
    const text = this.text.value.trim();
    return { text, ...(this.voice.value && { voice: this.voice.value }), ...(text.startsWith("<speak") && { ssml: true }) };
  }

  #showSound() {
    this.stage.replaceChildren(this.player.element);
    this.player.load(this.file);
    if (this.answer) this.player.length = this.answer.duration;
    if (this.fault) this.#say(this.fault, true);
  }

  #edited() {
    this.hearing?.abort(); // the server speaks one text at a time: it need not end one that has changed
    this.player.clear();
    const length = this.text.value.trim().length;
    this.listen.disabled = length > MOST_HEARD;
    this.#say(length > MOST_HEARD ? `Texts of up to ${MOST_HEARD} characters can be heard before; this one has ${length}.` : "");
    this.onchange();
  }

  async #listen() {
    if (!this.text.value.trim()) return void this.text.focus();
    const hearing = (this.hearing = new AbortController());
    this.listen.disabled = true;
    this.#say("The voice is being made…");
    this.heard.replaceChildren(this.player.element);
    try {
      await this.player.load(await callForBlob("POST", "/speech", this.spoken(), hearing.signal));
      this.#say("");
      await this.player.toggle();
    } catch (refusal) {
      if (hearing.signal.aborted) return;
      if (!(refusal instanceof Refusal)) throw refusal;
      this.#say(refusal.status === 429 ? "Another text is being spoken. Try again in a few seconds." : refusal.message, true);
    } finally {
      if (this.hearing === hearing) this.listen.disabled = this.text.value.trim().length > MOST_HEARD;
    }
  }

  #fillVoices() {
    return (this.filling ??= this.#readVoices());
  }

  async #readVoices() {
    try {
      this.voice.append(...grouped(await call("GET", "/tts/voices")));
    } catch (refusal) {
      this.filling = null; // the next turn to a text asks again
      this.#say(refusal.message, true);
    }
  }

  #say(text, wrong = false) {
    setText(this.note, text);
    this.note.classList.toggle("wrong", wrong);
  }
}

/** The voices in groups: Piper's sound more human, so they come first. */
function grouped(voices) {
  const group = (label, provider) => {
    const found = voices.filter((voice) => voice.provider === provider);
    const options = found.map((voice) => h("option", { value: voice.id }, voice.name === voice.id ? voice.id : `${voice.name} (${voice.id})`));
    return options.length ? [h("optgroup", { label }, ...options)] : [];
  };
  return [...group("Piper", "piper"), ...group("espeak-ng", "espeak-ng")];
}
