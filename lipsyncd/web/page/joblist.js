/** The jobs of the server, newest first, by pages; kept up to date by the events of the page's stream. */

import { Refusal, call } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { JobCard } from "./jobcard.js";
import { isEnded, stateWords } from "./words.js";

const PAGE = 20;
const TABS = [["All", ""], ["In progress", "queued,running,publishing"], ["Done", "done"], ["Failed", "failed,cancelled"]];
const SOON_MS = 300;
const TYPED_MS = 300;

export class JobList {
  /** @param {{onagain: (job: object, keep: string[]) => void}} around */
  constructor(around) {
    this.around = around;
    this.cards = new Map(); // id -> JobCard
    this.open = new Map(); // id -> state, of all jobs that have not ended
    this.elsewhere = new Set(); // ids that are not on the pages shown
    this.states = "";
    this.list = h("ol", { class: "stack jobs" });
    this.nothing = h("p", { class: "nothing", hidden: true });
    this.note = h("p", { class: "note wrong", role: "status" });
    this.more = h("button", { type: "button", class: "plain", hidden: true, onclick: () => this.#next() }, "Show more");
    this.summary = h("p", { class: "summary" });
    this.search = h("input", { type: "search", placeholder: "Find by name", "aria-label": "Find by name", oninput: () => this.#typed() });
    this.element = h("section", { "aria-labelledby": "videos" },
      h("div", { class: "row heading" }, h("h2", { id: "videos", tabIndex: -1 }, "Videos"), this.summary),
      h("div", { class: "row tools" }, this.#tabs(), this.search),
      this.note, this.list, this.nothing, h("div", { class: "row middle" }, this.more));
  }

  #tabs() {
    return h("fieldset", { class: "choice" }, h("legend", { class: "unseen" }, "Which videos"), ...TABS.map(([label, states]) =>
      h("label", {}, h("input", { type: "radio", name: "tab", class: "unseen", checked: !states, onchange: () => this.#turn(states) }), h("span", {}, label))));
  }

  #turn(states) {
    this.states = states;
    this.#empty();
    this.load();
  }

  #typed() {
    clearTimeout(this.typing);
    this.typing = setTimeout(() => {
      this.#empty();
      this.load();
    }, TYPED_MS);
  }

  #empty() {
    this.cards.forEach((card) => card.element.remove());
    this.cards.clear();
    this.elsewhere.clear();
    this.cursor = null;
  }

  /** The stream begins anew: what has not ended follows; the rest may have changed meanwhile. */
  async began() {
    this.open.clear();
    await this.load();
  }

  /** Read the first page again, and take over what has changed. */
  async load() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const shown = Math.max(PAGE, Math.min(100, this.cards.size));
    const page = await this.#page(null, shown);
    if (!page || turn !== this.turn) return;
    const ids = new Set(page.jobs.map((job) => job.id));
    const oldest = page.next ? page.jobs.at(-1)?.created_at : "";
    for (const [id, card] of this.cards) {
      if (!ids.has(id) && (card.job.created_at ?? "") >= oldest) this.#drop(card);
    }
    page.jobs.forEach((job) => this.#put(job));
    if (this.cursor === null || this.cards.size <= shown) this.cursor = page.next;
    this.#order();
    this.#show();
  }

  async #next() {
    let page = await this.#page(this.cursor, PAGE);
    while (page && !page.jobs.length && page.next) page = await this.#page(page.next, PAGE); // a filter may skip whole pages
    if (!page) return;
    this.cursor = page.next;
    page.jobs.forEach((job) => this.#put(job));
    this.#order();
    this.#show();
    this.cards.get(page.jobs[0]?.id)?.element.focus();
  }

  async #page(cursor, limit) {
    const query = new URLSearchParams({ limit });
    if (this.states) query.set("state", this.states);
    if (this.search.value.trim()) query.set("name", this.search.value.trim());
    if (cursor) query.set("cursor", cursor);
    try {
      const page = await call("GET", `/jobs?${query}`);
      setText(this.note, "");
      return page;
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      if (refusal.status) setText(this.note, refusal.message); // a lost connection is shown in the head of the page
      return null;
    }
  }

  /** A new job of this page. */
  add(job) {
    const known = this.cards.get(job.id)?.job; // the stream was faster, and knows more
    if (!known) {
      this.open.set(job.id, job.state);
      if (this.#belongs(job)) this.#put(job);
    }
    this.#order();
    this.#show();
    this.cards.get(job.id)?.element.focus();
    announce(`${job.name}: ${stateWords(known ?? job)}`);
  }

  /** An event: a job as it is now. */
  changed(job) {
    if (isEnded(job)) this.open.delete(job.id);
    else this.open.set(job.id, job.state);
    const card = this.cards.get(job.id);
    if (!card) {
      if (!this.elsewhere.has(job.id) && this.#belongs(job)) this.#reloadSoon();
    } else if (!this.#belongs(job)) {
      this.#drop(card);
    } else {
      const before = card.job.state;
      this.#update(card, job);
      if (before !== job.state) this.#whole(job.id);
      if (this.states.includes("queued")) this.#order();
    }
    this.#show();
  }

  /** An event: a job was deleted, or its time was over. */
  removed(id) {
    this.open.delete(id);
    const card = this.cards.get(id);
    if (card) this.#gone(card);
  }

  #belongs(job) {
    return !this.states || this.states.split(",").includes(job.state);
  }

  /** New jobs may come in hundreds: one request shows them all. What it does not show lies on a later page. */
  #reloadSoon() {
    if (this.reloading) return;
    this.reloading = setTimeout(async () => {
      await this.load();
      this.open.forEach((_, id) => this.cards.has(id) || this.elsewhere.add(id));
      this.reloading = null;
    }, SOON_MS);
  }

  /** Events leave out what changes once, such as the length and the end of a job. */
  async #whole(id) {
    try {
      const job = await call("GET", `/jobs/${id}`);
      const card = this.cards.get(id);
      if (card) this.#update(card, job);
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
    }
  }

  /** Show a job as it is now. Its end is announced, whether an event or an answer brought it. */
  #update(card, job) {
    const hasEnded = !isEnded(card.job) && isEnded(job);
    card.update(job);
    if (!hasEnded) return;
    this.open.delete(job.id);
    announce(`${job.name}: ${stateWords(job)}`);
  }

  #put(job) {
    const card = this.cards.get(job.id);
    if (card) return this.#update(card, job);
    this.elsewhere.delete(job.id);
    this.cards.set(job.id, new JobCard(job, { onagain: this.around.onagain, ongone: (gone) => this.#gone(gone) }));
    return undefined;
  }

  #drop(card) {
    this.cards.delete(card.job.id);
    card.element.remove();
  }

  #gone(card) {
    if (!this.cards.has(card.job.id)) return; // the stream was faster
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    const hadFocus = card.element.contains(document.activeElement);
    this.#drop(card);
    if (hadFocus) (next ?? document.getElementById("videos")).focus();
    this.#show();
  }

  /** Newest first; what is in progress in the order of the queue. Cards that lie right are not touched. */
  #order() {
    const inQueue = this.states.includes("queued");
    const rank = (job) => (job.state === "queued" ? (job.position ?? 1e9) : 0);
    const cards = [...this.cards.values()].sort((a, b) =>
      (inQueue ? rank(a.job) - rank(b.job) : 0) || (b.job.created_at ?? "").localeCompare(a.job.created_at ?? ""));
    let place = this.list.firstElementChild;
    for (const { element } of cards) {
      if (element === place) place = place.nextElementSibling;
      else this.list.insertBefore(element, place);
    }
  }

  #show() {
    const running = [...this.open.values()].filter((state) => state !== "queued").length;
    const waiting = this.open.size - running;
    const words = [running && `${running} in progress`, waiting && `${waiting} waiting`].filter(Boolean).join(", ");
    setText(this.summary, words);
    document.title = words ? `${words} · lipsyncd` : "lipsyncd";
    this.more.hidden = !this.cursor;
    this.nothing.hidden = this.cards.size > 0 || Boolean(this.cursor);
    const isFiltered = this.states || this.search.value.trim();
    setText(this.nothing, isFiltered ? "No video fits." : "No videos yet. Drop a portrait and a voice to make the first one.");
  }
}
