/** The form for the key of a server that needs one. The key goes to the server once, and is stored nowhere here. */

import { Refusal, call } from "./api.js";
import { h, setText } from "./dom.js";

export class SignIn {
  /** @param {() => void} onsigned called when the server has accepted the key */
  constructor(onsigned) {
    this.onsigned = onsigned;
    this.key = h("input", { id: "key", type: "password", autocomplete: "current-password", required: true, maxLength: 1000 });
    this.note = h("p", { class: "note wrong", role: "alert" });
    this.button = h("button", { type: "submit", class: "primary" }, "Sign in");
    this.element = h("form", { class: "card signin", onsubmit: (event) => this.#submit(event) },
      h("h1", {}, "Sign in"), h("p", {}, "This server needs a key. Its administrator has it."),
      h("input", { autocomplete: "username", value: "lipsyncd", hidden: true }), // for programs that keep passwords
      h("label", { for: "key" }, "Key"), this.key, this.note, this.button);
  }

  async #submit(event) {
    event.preventDefault();
    this.button.disabled = true;
    setText(this.note, "");
    try {
      await call("POST", "/session", { key: this.key.value });
      this.key.value = "";
      this.onsigned();
    } catch (refusal) {
      if (!(refusal instanceof Refusal)) throw refusal;
      setText(this.note, refusal.message);
      this.key.select();
    } finally {
      this.button.disabled = false;
    }
  }
}
