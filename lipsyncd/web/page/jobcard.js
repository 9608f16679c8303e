/** One job of the list: what it is, what it does, and what may be done with it. */

import { Refusal, call, localPath } from "./api.js";
import { announce, confirmed, h, setText } from "./dom.js";
import { factWords, isEnded, leftWords, lookOf, stateWords, trouble } from "./words.js";

const MARKS = { done: "✓", failed: "!", blocked: "!", cancelled: "–" };

export class JobCard {
  /**
   * @param {object} job
   * @param {{ongone: (card: JobCard) => void, onagain: (job: object, keep: string[]) => void}} around
   */
  constructor(job, around) {
    this.around = around;
    this.thumb = h("div", { class: "thumb" });
    this.title = h("h3", {});
    this.mark = h("span", { class: "mark", "aria-hidden": "true" });
    this.state = h("span", { class: "state" });
    this.left = h("span", { class: "left" });
    this.bar = h("progress", { max: 1 });
    this.facts = h("p", { class: "facts" });
    this.why = h("p", { class: "why" });
    this.remedy = h("p", { class: "remedy" });
    this.note = h("p", { class: "note wrong", role: "status" });
    this.actions = h("div", { class: "row actions" });
    this.film = h("div", { class: "film", hidden: true });
    this.element = h("li", { class: "card job", tabIndex: -1 }, this.thumb,
      h("div", { class: "about" },
        h("div", { class: "head" }, this.title, this.facts),
        h("p", { class: "now" }, h("span", {}, this.mark, this.state), this.left), this.bar, this.why, this.remedy, this.note),
      this.actions, this.film);
    this.job = {};
    this.update(job);
  }

  /** Take over what is known now; events have fewer fields than answers. */
  update(job) {
    const before = this.job;
    const after = { ...before, ...job };
    this.job = after;
    const look = lookOf(after);
    this.element.dataset.look = look;
    this.element.dataset.state = after.state;
    setText(this.title, after.name);
    this.title.title = after.name;
    setText(this.facts, factWords(after));
    setText(this.mark, MARKS[look] ?? "");
    setText(this.state, stateWords(after));
    setText(this.left, leftWords(after));
    this.bar.hidden = after.state !== "running" && after.state !== "publishing";
    this.bar.setAttribute("aria-label", `Progress of ${after.name}`);
    if (after.state === "running" && !after.fraction) this.bar.removeAttribute("value");
    else this.bar.value = after.state === "publishing" ? 1 : after.fraction;
    const wrong = trouble(after);
    this.#showText(this.why, wrong?.message);
    this.#showText(this.remedy, wrong?.remedy);
    if (before.thumbnail_url !== after.thumbnail_url || before.state !== after.state) this.#showThumb();
    if (before.state !== after.state || before.cancel_requested !== after.cancel_requested || before.name !== after.name ||
        before.result_url !== after.result_url || JSON.stringify(before.inputs) !== JSON.stringify(after.inputs)) this.#showActions();
  }

  #showText(place, text) {
    place.hidden = !text;
    setText(place, text ?? "");
  }

  #showThumb() {
    const { job } = this;
    const picture = job.thumbnail_url ? h("img", { src: localPath(job.thumbnail_url), alt: "", loading: "lazy" }) : null;
    picture?.addEventListener("error", () => picture.remove()); // its picture is gone: the empty frame remains
    if (job.state !== "done") return this.thumb.replaceChildren(...(picture ? [picture] : []));
    const [verb, look] = this.film.hidden ? ["Play", "play"] : ["Close", "play stop"];
    return this.thumb.replaceChildren(...(picture ? [picture] : []),
      h("button", { type: "button", class: look, "aria-label": `${verb} ${job.name}`, onclick: () => this.#play() }));
  }

  #play() {
    if (this.film.hidden) {
      const video = h("video", { src: localPath(this.job.result_url), controls: true, playsInline: true, "aria-label": this.job.name });
      video.addEventListener("error", () => this.#say("The video cannot be played: it was taken away, or has expired."));
      this.film.replaceChildren(video);
      this.film.hidden = false;
      video.play().catch(() => {}); // a browser that wants another click shows its own button
      this.#showThumb();
      video.focus({ preventScroll: true });
    } else {
      this.#closeFilm();
      this.thumb.querySelector("button")?.focus();
    }
  }

  #closeFilm() {
    this.film.replaceChildren();
    this.film.hidden = true;
    this.#showThumb();
  }

  #showActions() {
    const { job } = this;
    const hadFocus = this.actions.contains(document.activeElement);
    const button = (label, act, look = "plain") =>
      h("button", { type: "button", class: look, "aria-label": `${label}: ${job.name}`, onclick: act }, label);
    const parts = [];
    if (job.state === "done" && job.result_url)
      parts.push(h("a", { class: "button plain", href: localPath(job.result_url), download: `${job.name}.mp4`, "aria-label": `Download: ${job.name}` }, "Download"));
    if (job.state === "failed" || job.state === "cancelled") parts.push(button("Try again", () => this.#act("retry")));
    if (isEnded(job)) {
      const again = this.#againMenu();
      if (again) parts.push(again);
      parts.push(button("Delete", () => this.#delete(), "quiet"));
    } else if (job.state !== "publishing" && !job.cancel_requested) parts.push(button("Cancel", () => this.#act("cancel"), "quiet"));
    this.actions.replaceChildren(...parts);
    if (hadFocus) (this.actions.querySelector("button, a, summary") ?? this.element).focus();
    if (job.state !== "done" && !this.film.hidden) this.#closeFilm();
  }

  /** "Again with…", for what the server still has of the job. */
  #againMenu() {
    const { job } = this;
    const { image, audio } = job.inputs ?? {};
    const choices = [
      image && ["another voice", ["picture"]],
      audio && ["another picture", ["sound"]],
      image && audio && ["other options", ["picture", "sound"]],
    ].filter(Boolean);
    if (!choices.length) return null;
    const menu = h("details", { class: "menu" },
      h("summary", { class: "button plain", "aria-label": `Again with…: ${job.name}` }, "Again with…"),
      h("div", { class: "choices" }, ...choices.map(([label, keep]) =>
        h("button", { type: "button", class: "quiet", onclick: () => { menu.open = false; this.around.onagain(this.job, keep); } }, label))));
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      menu.open = false;
      menu.querySelector("summary").focus();
    });
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
    });
    return menu;
  }

  async #act(action) {
    this.#say("");
    try {
      this.update(await call("POST", `/jobs/${this.job.id}/${action}`));
      announce(`${this.job.name}: ${stateWords(this.job)}`);
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      this.#say(refusal.message);
    }
  }

  async #delete() {
    const { job } = this;
    const what = job.state === "done" ? "The video and its files are removed from the server." : "The job and its files are removed from the server.";
    if (!(await confirmed(`Delete ${job.name}?`, what, "Delete"))) return;
    try {
      await call("DELETE", `/jobs/${job.id}`);
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      if (refusal.status !== 404) return this.#say(refusal.message);
    }
    announce(`${job.name} was deleted.`);
    this.around.ongone(this);
  }

  #say(text) {
    setText(this.note, text);
  }
}
