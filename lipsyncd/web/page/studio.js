/** The orders that are not sent yet. The whole window takes files; each pair of them becomes an order. */

import { Refusal, call } from "./api.js";
import { announce, h, setText } from "./dom.js";
import { sortFiles } from "./files.js";
import { Order } from "./order.js";

const MOST_ORDERS = 50;

export class Studio {
  /** @param {{onsent: (job: object) => void, needsKey: () => boolean}} around */
  constructor(around) {
    this.around = around;
    this.orders = [];
    this.list = h("div", { class: "stack" });
    this.note = h("p", { class: "note", role: "status" });
    this.startAll = h("button", { type: "button", class: "primary", onclick: () => this.#sendAll() });
    this.together = h("div", { class: "card together", hidden: true }, this.note, this.startAll);
    this.veil = h("div", { class: "veil", hidden: true }, h("p", {}, "Drop pictures and sounds"));
    this.element = h("section", { "aria-labelledby": "new-video" },
      h("h1", { id: "new-video", tabIndex: -1 }, "New video"), this.list, this.together, this.veil);
    this.#add();
    this.#listen();
  }

  /** Begin an order with parts of an earlier job. `keep` names them: "picture", "sound" or both. */
  async again(job, keep) {
    const made = await orderOf(job);
    const order = this.orders.find((one) => one.isEmpty) ?? this.#add();
    if (keep.includes("picture")) order.picture.takeJob(job, made.options?.face);
    if (keep.includes("sound")) order.voice.takeJob(job, made);
    order.options.take(made);
    order.options.name.value = job.name;
    if (keep.length === 2) order.options.element.open = true;
    order.element.scrollIntoView({ block: "center" });
    order.element.querySelector(keep.includes("picture") ? "[data-pane=sound] input" : "[data-pane=picture] input").focus();
  }

  #add() {
    const order = new Order({
      needsKey: this.around.needsKey,
      onchange: () => this.#count(),
      onclosed: (closed) => this.#remove(closed),
      onsent: (sent, job) => {
        this.#remove(sent);
        this.around.onsent(job);
      },
    });
    this.orders.push(order);
    this.list.append(order.element);
    this.#count();
    return order;
  }

  #remove(order) {
    order.picture.clear();
    order.voice.clear();
    this.orders = this.orders.filter((one) => one !== order);
    const hadFocus = order.element.contains(document.activeElement);
    order.element.remove();
    if (!this.orders.length) this.#add();
    if (hadFocus) document.getElementById("new-video").focus({ preventScroll: true });
    this.#count();
  }

  #count() {
    const filled = this.orders.filter((order) => !order.isEmpty);
    this.together.hidden = filled.length < 2;
    this.list.classList.toggle("many", this.orders.length > 1);
    const ready = filled.filter((order) => order.isReady).length;
    setText(this.startAll, `Make ${ready} videos`);
    this.startAll.setAttribute("aria-disabled", String(!ready));
    setText(this.note, ready === filled.length ? `${ready} videos are ready to be made.` : `${ready} of ${filled.length} are ready to be made.`);
  }

  async #sendAll() {
    for (const order of this.orders.filter((one) => one.isReady)) await order.send();
  }

  // -- files ---------------------------------------------------------------------------------------------------------

  #listen() {
    let inside = 0;
    const bringsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const show = (depth) => {
      inside = Math.max(0, depth);
      this.veil.hidden = inside === 0;
    };
    // A file that is dropped outside the fields would replace the page.
    window.addEventListener("dragenter", (event) => bringsFiles(event) && show(inside + 1));
    window.addEventListener("dragleave", (event) => bringsFiles(event) && show(inside - 1));
    window.addEventListener("dragover", (event) => bringsFiles(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      show(0);
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      if (this.element.isConnected) this.take([...event.dataTransfer.files], event.target);
    });
    window.addEventListener("paste", (event) => {
      if (event.clipboardData?.files.length && this.element.isConnected) this.take([...event.clipboardData.files]);
    });
  }

  /** Take dropped or pasted files. One file that is dropped onto a place goes there, whatever it seems to be. */
  take(files, target) {
    const pane = target instanceof Element ? target.closest("[data-pane]") : null;
    const owner = pane && this.orders.find((order) => order.element.contains(pane));
    if (owner && files.length === 1) return owner.take({ [pane.dataset.pane]: files[0] });
    const { pairs, others } = sortFiles(files);
    for (const pair of pairs) this.#placeFor(pair, pairs.length)?.take(pair);
    if (others.length) {
      announce("");
      setText(this.note, "");
      this.orders.at(-1).refuse(`${others.map((file) => file.name).join(", ")}: this is neither a picture nor a sound.`);
    } else announce(pairs.length === 1 ? "The files were added." : `${pairs.length} videos were added.`);
    return undefined;
  }

  #placeFor(pair, count) {
    const fits = (order) => order.isEmpty || (!(pair.picture && !order.picture.isEmpty) && !(pair.sound && !order.voice.isEmpty));
    const isHalf = !pair.picture || !pair.sound;
    const found = this.orders.find(fits) ?? (isHalf && count === 1 && this.orders.length === 1 ? this.orders[0] : null);
    if (found) return found;
    return this.orders.length < MOST_ORDERS ? this.#add() : null;
  }
}

/** What an earlier job was made of; where the server cannot tell, what the list knows of it. */
async function orderOf(job) {
  try {
    return await call("GET", `/jobs/${job.id}/order`);
  } catch (refusal) {
    if (!(refusal instanceof Refusal)) throw refusal;
    return job;
  }
}
