/** Makes elements without HTML text, so that no name or message of a job is ever read as markup. */

/**
 * An element with its properties and children.
 *
 * `class`, `for`, `role`, `aria-*` and `data-*` become attributes, `onX` listeners, everything else properties.
 * Children that are null or false are left out; text stays text.
 *
 * @param {string} tag
 * @param {Object<string, any>} [properties]
 * @param {...(Node|string|null|false|undefined)} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(class|for|role|list|datetime|aria-.+|data-.+)$/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Set a text only when it has changed, so that screen readers and the selection are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let last = 0;

/** An id that no other element has. */
export function freshId(prefix) {
  last += 1;
  return `${prefix}-${last}`;
}

/** Say something to a screen reader, once, when it has finished what it is reading. */
export function announce(text) {
  const place = document.getElementById("announcements");
  if (place) place.textContent = text;
}

/**
 * Ask before something that cannot be undone. The dialog is the browser's own modal: it keeps the focus inside, ends
 * with Escape, and gives the focus back.
 *
 * @returns {Promise<boolean>} whether the visitor agreed
 */
export function confirmed(question, explanation, action) {
  const id = freshId("question");
  const dialog = h("dialog", { "aria-labelledby": id },
    h("form", { method: "dialog" },
      h("h2", { id }, question),
      h("p", {}, explanation),
      h("div", { class: "row end" },
        h("button", { value: "no", class: "plain" }, "Keep"),
        h("button", { value: "yes", class: "danger" }, action))));
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    dialog.showModal();
  });
}

/** A button that lets the visitor choose files; the keyboard reaches it like any other. */
export function fileButton(label, accept, onfiles, { multiple = false, look = "plain" } = {}) {
  const input = h("input", {
    type: "file", accept, multiple, class: "unseen",
    onchange: () => {
      const files = [...input.files];
      input.value = "";
      if (files.length) onfiles(files);
    },
  });
  return h("label", { class: `button ${look}` }, input, label);
}
