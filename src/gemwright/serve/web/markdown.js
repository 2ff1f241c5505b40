// Markdown to nodes. Text of a model is untrusted: HTML in it is shown as text, images become links, the result is
// sanitized, and only the blocks that changed are rendered again.

import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";
import { copy, h, iconButton } from "./dom.js";

const MAX_LENGTH = 200_000; // in characters; a longer text is shown as it is
const TAGS = "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr input li ol p pre strong table tbody td th thead tr ul".split(" ");
const ATTRIBUTES = ["href", "title", "align", "start", "class", "type", "checked", "disabled"];

const escape = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  },
});

DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer nofollow");
    node.title = node.getAttribute("href") ?? "";
  }
  if (node.nodeName === "INPUT" && node.type !== "checkbox") node.remove();
  if (node.nodeName === "INPUT") node.setAttribute("aria-label", node.checked ? "Done" : "Open");
});

function sanitize(html) {
  return DOMPurify.sanitize(html, {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
    RETURN_DOM_FRAGMENT: true,
  });
}

function decorate(block) {
  for (const pre of block.querySelectorAll("pre")) {
    const code = pre.querySelector("code") ?? pre;
    const language = /language-([\w+#.-]{1,30})/.exec(code.className)?.[1] ?? "";
    pre.tabIndex = 0; // so that a keyboard can scroll it
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", language ? `Code in ${language}` : "Code");
    const button = iconButton("copy", "Copy the code", () => copy(button, code.textContent));
    const frame = h("div", { class: "code-block" });
    pre.replaceWith(frame);
    frame.append(h("div", { class: "code-top" }, h("span", {}, language), button), pre);
  }
  for (const table of block.querySelectorAll("table")) {
    const frame = h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
}

/** A renderer of one text that grows. */
export class Markdown {
  #blocks = []; // [source, element] of each block

  constructor(element) {
    this.element = element;
  }

  render(text) {
    if (text.length > MAX_LENGTH) {
      this.#blocks = [];
      this.element.replaceChildren(h("div", { class: "plain" }, text));
      return;
    }
    const tokens = marked.lexer(text);
    let same = 0;
    while (same < tokens.length && this.#blocks[same]?.[0] === tokens[same].raw) same++;
    for (const [, element] of this.#blocks.splice(same)) element.remove();
    for (const token of tokens.slice(same)) {
      const element = h("div", { class: "block" });
      if (token.type !== "space") element.append(sanitize(marked.parser(Object.assign([token], { links: tokens.links }))));
      decorate(element);
      this.#blocks.push([token.raw, element]);
      this.element.append(element);
    }
  }
}
