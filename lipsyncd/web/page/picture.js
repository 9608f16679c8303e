/** The place of the picture: shows it, frames the face that will speak, and lets the visitor choose another one. */

import { Refusal, localPath, sentence, upload } from "./api.js";
import { announce, fileButton, h, setText } from "./dom.js";
import { PICTURE_TYPES, isFilm } from "./files.js";

export class PicturePane {
  /** @param {() => void} onchange called when anything about the picture has changed */
  constructor(onchange) {
    this.onchange = onchange;
    this.stage = h("div", { class: "stage" });
    this.note = h("p", { class: "note", role: "status" });
    this.bar = h("progress", { max: 1, "aria-label": "Upload of the picture", hidden: true });
    this.name = h("span", { class: "name" });
    this.element = h("div", { class: "pane", "data-pane": "picture", role: "group", "aria-label": "Picture" },
      h("div", { class: "row title" }, h("h2", {}, "Portrait")), this.stage, this.bar,
      h("div", { class: "row" }, h("div", { class: "words" }, this.name, this.note),
        fileButton("Choose a picture", PICTURE_TYPES, ([file]) => this.take(file))));
    this.clear();
  }

  get isEmpty() {
    return !this.file && !this.jobId;
  }

  /** The picture can be used, as far as the server knows. */
  get isReady() {
    return Boolean(this.jobId || (this.answer && !this.fault));
  }

  clear() {
    this.stopping?.abort();
    if (this.address) URL.revokeObjectURL(this.address);
    Object.assign(this, { file: null, jobId: null, answer: null, fault: null, address: null, chosen: null, faceOfJob: undefined, busy: false });
    this.stage.replaceChildren(h("div", { class: "empty" }, h("strong", {}, "Drop a portrait"), h("span", {}, "or a video of one, anywhere on this page")));
    this.bar.hidden = true;
    setText(this.name, "");
    this.#say("");
  }

  /** Use the picture of an earlier job, which the server has kept, and in it the face that spoke. */
  takeJob(job, face) {
    this.clear();
    this.jobId = job.id;
    this.faceOfJob = face ?? undefined;
    const address = job.thumbnail_url ? localPath(job.thumbnail_url) : "";
    this.stage.replaceChildren(address ? h("div", { class: "frame" }, h("img", { src: address, alt: `The picture of ${job.name}` })) : h("div", { class: "empty" }, "The picture of the earlier video"));
    setText(this.name, `Picture of ${job.name}`);
    this.onchange();
  }

  /** Show a file and send it; its faces come with the server's answer. */
  async take(file) {
    this.clear();
    const stopping = new AbortController();
    Object.assign(this, { file, stopping, busy: true, address: URL.createObjectURL(file) });
    setText(this.name, file.name);
    this.#show(this.address, isFilm(file));
    this.bar.hidden = false;
    this.bar.value = 0;
    this.#say("Sending…");
    this.onchange();
    try {
      const answer = await upload("/images", "image", file, (done) => this.#sent(done), stopping.signal);
      if (this.file !== file) return;
      this.answer = answer;
      if (this.undrawable && answer.thumbnail_url) this.#show(localPath(answer.thumbnail_url), false);
      this.#showFaces();
    } catch (refusal) {
      if (this.file !== file || !(refusal instanceof Refusal)) return;
      this.#refuse(refusal.message);
    } finally {
      if (this.file === file) {
        this.busy = false;
        this.bar.hidden = true;
        this.onchange();
      }
    }
  }

  /** Until all is sent the bar shows how much; then the server looks at it, for a time that is not known. */
  #sent(done) {
    this.bar.value = done;
    if (done < 1) return;
    this.bar.removeAttribute("value");
    this.#say("Looking for faces…");
  }

  /** The fields of a job that name this picture. */
  fields() {
    return this.jobId ? { image_of: this.jobId } : { image_url: this.answer.url };
  }

  /** The face that the visitor has chosen, as the renderers' option `face`; undefined leaves the choice to them. */
  get face() {
    if (!this.chosen) return this.faceOfJob;
    const { left, top, right, bottom } = this.chosen.detection;
    return `${Math.round((left + right) / 2)},${Math.round((top + bottom) / 2)}`;
  }

  #show(address, film) {
    this.undrawable = false;
    const picture = film
      ? h("video", { src: address, muted: true, playsInline: true, preload: "metadata", "aria-label": "The video" })
      : h("img", { src: address, alt: "The picture" });
    picture.addEventListener("error", () => {
      this.undrawable = true; // HEIC and its like: the server's small JPEG takes its place
      if (this.answer?.thumbnail_url && address === this.address) this.#show(localPath(this.answer.thumbnail_url), false);
      else frame.replaceChildren(h("div", { class: "empty" }, "This browser cannot show this kind of picture. The server can use it."));
      this.#placeFaces();
    });
    const frame = h("div", { class: "frame" }, picture);
    this.frame = frame;
    this.stage.replaceChildren(frame);
  }

  #showFaces() {
    const faces = this.answer.faces;
    this.faces = faces ?? [];
    if (!faces) return this.#say(isFilm(this.file) ? "The face is looked for in each frame of the video." : "");
    if (this.answer.reason) return this.#refuse(sentence(this.answer.reason));
    this.speaking = faces[this.answer.face];
    this.#placeFaces();
    this.#say(faces.length === 1 ? "This face will speak." : `${faces.length} faces: choose the one that speaks.`);
  }

  #placeFaces() {
    this.frame.querySelectorAll(".face").forEach((old) => old.remove());
    if (!this.speaking || !this.frame.querySelector("img, video")) return;
    this.faces.forEach((face, number) => {
      const isSpeaking = face === this.speaking;
      const place = this.faces.length === 1
        ? h("div", { class: "face", "aria-hidden": "true" })
        : h("button", {
          type: "button", class: "face", "aria-pressed": String(isSpeaking),
          "aria-label": `Face ${number + 1} of ${this.faces.length} speaks`,
          onclick: () => this.#choose(face, number),
        });
      if (isSpeaking) place.classList.add("speaks");
      const { left, top, right, bottom } = face.detection;
      const { width, height } = this.answer;
      place.style.left = `${(50 * (left + right)) / width}%`;
      place.style.top = `${(50 * (top + bottom)) / height}%`;
      place.style.width = `${(100 * (right - left)) / width}%`;
      place.style.height = `${(100 * (bottom - top)) / height}%`;
      this.frame.append(place);
    });
  }

  #choose(face, number) {
    this.chosen = this.speaking = face;
    this.frame.querySelectorAll(".face").forEach((place, at) => {
      place.classList.toggle("speaks", at === number);
      place.setAttribute("aria-pressed", String(at === number));
    });
    announce(`Face ${number + 1} will speak.`);
    this.onchange();
  }

  #refuse(message) {
    this.fault = message;
    this.#say(message, true);
  }

  #say(text, wrong = false) {
    setText(this.note, text);
    this.note.classList.toggle("wrong", wrong);
  }
}
