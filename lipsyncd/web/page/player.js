/** A sound as a waveform with a button to play it; the waveform is also the place to seek in it. */

import { h, setText } from "./dom.js";
import { clock, lengthWords } from "./words.js";

const DECODED_RATE = 8000; // Hz: enough to draw, and ten minutes stay below 40 MB
const MOST_DECODED_BYTES = 200e6;
const BARS = 160;
let playing = null; // one sound at a time

export class Player {
  constructor() {
    this.peaks = [];
    this.audio = h("audio", { preload: "metadata" });
    this.canvas = h("canvas", { "aria-hidden": "true" });
    this.seek = h("input", {
      type: "range", min: 0, max: 1, step: 0.001, value: 0, "aria-label": "Position in the sound",
      oninput: () => { if (this.duration) this.audio.currentTime = Number(this.seek.value) * this.duration; this.#show(); },
    });
    this.button = h("button", { type: "button", class: "round", "aria-label": "Play", onclick: () => this.toggle() });
    this.times = h("span", { class: "times" });
    this.element = h("div", { class: "player", hidden: true },
      this.button, h("div", { class: "wave" }, this.canvas, this.seek), this.times, this.audio);
    for (const name of ["play", "pause", "ended", "timeupdate", "loadedmetadata", "seeked"])
      this.audio.addEventListener(name, () => this.#show());
    this.audio.addEventListener("error", () => this.#show());
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Show a sound. What the browser cannot decode keeps its length, once the server has measured it. */
  async load(blob) {
    this.clear();
    this.blob = blob;
    this.address = URL.createObjectURL(blob);
    this.audio.src = this.address;
    this.element.hidden = false;
    this.#show();
    const peaks = await peaksOf(blob);
    if (this.blob !== blob) return; // another sound came meanwhile
    this.peaks = peaks.heights;
    if (peaks.duration) this.known = peaks.duration;
    this.#show();
  }

  /** Stop, and forget the sound. */
  clear() {
    this.audio.pause();
    this.audio.removeAttribute("src");
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = this.blob = this.known = null;
    this.peaks = [];
    this.element.hidden = true;
  }

  /** The length as the server measured it, in seconds. */
  set length(seconds) {
    this.known = seconds;
    this.#show();
  }

  get duration() {
    return this.known || (Number.isFinite(this.audio.duration) ? this.audio.duration : 0);
  }

  get canPlay() {
    return !this.audio.error;
  }

  async toggle() {
    if (!this.audio.paused) return this.audio.pause();
    if (playing && playing !== this) playing.audio.pause();
    playing = this;
    try {
      await this.audio.play();
    } catch {
      this.#show(); // a format that this browser does not play: the button is gone then
    }
  }

  #show() {
    const at = this.duration ? Math.min(1, this.audio.currentTime / this.duration) : 0;
    const isPlaying = !this.audio.paused && !this.audio.ended;
    this.button.classList.toggle("playing", isPlaying);
    this.button.setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    this.button.hidden = this.seek.hidden = !this.canPlay;
    this.seek.value = String(at);
    this.seek.setAttribute("aria-valuetext", `${clock(this.audio.currentTime)} of ${clock(this.duration)}`);
    setText(this.times, !this.duration ? "" : at > 0 && at < 1 ? `${clock(this.audio.currentTime)} / ${clock(this.duration)}` : lengthWords(this.duration));
    this.at = at;
    this.#draw();
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!width || !height) return;
    const scale = devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const style = getComputedStyle(this.canvas);
    const pen = this.canvas.getContext("2d");
    const bars = Math.min(BARS, Math.floor(width / 4));
    const step = this.canvas.width / bars;
    for (let bar = 0; bar < bars; bar += 1) {
      const from = Math.floor((bar * this.peaks.length) / bars);
      const to = Math.max(from + 1, Math.floor(((bar + 1) * this.peaks.length) / bars));
      const peak = this.peaks.length ? Math.max(...this.peaks.slice(from, to)) : 0;
      const tall = Math.max(2 * scale, peak * this.canvas.height);
      pen.fillStyle = bar / bars < this.at ? style.color : style.borderTopColor;
      pen.beginPath();
      pen.roundRect(bar * step + step * 0.2, (this.canvas.height - tall) / 2, step * 0.6, tall, step * 0.3);
      pen.fill();
    }
  }
}

/** The loudest sample of each part of a sound, 0 to 1, and its length; nothing where the browser cannot decode it. */
async function peaksOf(blob) {
  if (blob.size > MOST_DECODED_BYTES) return { heights: [], duration: 0 };
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, DECODED_RATE).decodeAudioData(await blob.arrayBuffer());
  } catch {
    return { heights: [], duration: 0 };
  }
  const samples = sound.getChannelData(0);
  const count = Math.min(BARS * 2, samples.length);
  const heights = Array.from({ length: count }, (_, part) => {
    let most = 0;
    const end = Math.floor(((part + 1) * samples.length) / count);
    for (let at = Math.floor((part * samples.length) / count); at < end; at += 1) most = Math.max(most, Math.abs(samples[at]));
    return most;
  });
  const loudest = Math.max(...heights, 0.05);
  return { heights: heights.map((height) => height / loudest), duration: sound.duration };
}
