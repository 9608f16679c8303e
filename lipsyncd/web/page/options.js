/** What a visitor may set besides picture and voice, and the same order as a line for a shell. */

import { freshId, h, setText } from "./dom.js";

const DEFAULT = "As set on the server";
const CHOICES = {
  stitch: ["Shows", [["", DEFAULT], ["false", "The square around the face"], ["true", "The whole picture"]]],
  resolution: ["Size of the square", [["", DEFAULT], ...[256, 384, 512, 768, 1024].map((side) => [String(side), `${side} × ${side}`])]],
  fps: ["Frames per second", [["", DEFAULT], ...["24", "25", "29.97", "30", "50", "60"].map((rate) => [rate, rate])]],
  motion: ["Motion of the head", [["", DEFAULT], ["none", "None"], ["subtle", "Subtle"], ["lively", "Lively"]]],
  renderer: ["Renderer", [["", DEFAULT], ["preview", "preview: quick, on any machine"], ["musetalk", "musetalk: for a GPU"]]],
};

export class Options {
  /** @param {() => void} onchange called when a value has changed */
  constructor(onchange) {
    this.name = h("input", { id: freshId("name"), maxLength: 150, autocomplete: "off", oninput: onchange });
    this.selects = {};
    const rows = Object.entries(CHOICES).map(([field, [label, values]]) => {
      const id = freshId(field);
      this.selects[field] = h("select", { id, onchange: () => { this.#fit(); onchange(); } }, ...values.map(([value, text]) => h("option", { value }, text)));
      return h("div", {}, h("label", { for: id }, label), this.selects[field]);
    });
    this.element = h("details", { class: "fold" }, h("summary", {}, "Options"),
      h("div", { class: "fields" }, h("div", {}, h("label", { for: this.name.id }, "Name of the video"), this.name), ...rows));
  }

  /** The whole picture has its own size. */
  #fit() {
    this.selects.resolution.disabled = this.selects.stitch.value === "true";
  }

  /** Show the values that an earlier job was made with. */
  take(values) {
    for (const [field, select] of Object.entries(this.selects)) {
      const value = values?.[field];
      if (value === null || value === undefined) continue;
      const text = String(value);
      if (![...select.options].some((option) => option.value === text)) select.append(h("option", { value: text }, text));
      select.value = text;
    }
    this.#fit();
  }

  /** The fields that differ from the server's settings. */
  fields() {
    const set = Object.entries(this.selects).filter(([, select]) => select.value && !select.disabled);
    const values = Object.fromEntries(set.map(([field, select]) => [field, typed(field, select.value)]));
    return this.name.value.trim() ? { name: this.name.value.trim(), ...values } : values;
  }
}

function typed(field, value) {
  if (field === "stitch") return value === "true";
  return field === "resolution" ? Number(value) : value;
}

/** The line for a shell that sends the same order, and a button that copies it. */
export class CurlLine {
  constructor() {
    this.code = h("code", { tabIndex: 0, "aria-label": "Command" });
    this.button = h("button", { type: "button", class: "plain", onclick: () => this.#copy() }, "Copy");
    this.element = h("details", { class: "fold" }, h("summary", {}, "The same with curl"), h("pre", {}, this.code), h("div", { class: "row end" }, this.button));
  }

  /** @param {Object<string, any>} fields as a form has them: text, or `@` and a file name */
  show(fields, needsKey) {
    const key = needsKey ? ' -H "Authorization: Bearer $LIPSYNCD_API_KEY"' : "";
    const parts = Object.entries(fields).map(([name, value]) => {
      const flag = name === "image" || name === "audio" ? "-F" : "--form-string";
      return ` \\\n  ${flag} ${quoted(`${name}=${value}`)}`;
    });
    setText(this.code, `curl -sf${key}${parts.join("")} \\\n  ${location.origin}/jobs`);
  }

  /** Without TLS a page may not write to the clipboard: then the text is selected and copied as by hand. */
  async #copy() {
    try {
      await navigator.clipboard.writeText(this.code.textContent);
    } catch {
      getSelection().selectAllChildren(this.code);
      document.execCommand("copy");
    }
    setText(this.button, "Copied");
    setTimeout(() => setText(this.button, "Copy"), 2000);
  }
}

function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
