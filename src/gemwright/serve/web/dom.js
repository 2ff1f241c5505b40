// Small helpers for the document. Text from outside only ever becomes text nodes.

export const $ = (id) => document.getElementById(id);

/** Create an element: `on…` properties are listeners, true and false set and omit attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** Create an SVG element. */
export function svg(tag, properties = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Create an icon of icons.svg; it says nothing to a screen reader. */
export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `web/icons.svg#${name}` }));
}

/** Create a button with an icon and a name. */
export function iconButton(name, label, onclick, properties = {}) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

/** Say a sentence to screen readers. */
export function announce(sentence) {
  $("announce").textContent = sentence;
}

/** Copy text and show a check mark on the button for a moment. */
export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no permission, or an address without TLS
    const area = h("textarea", { class: "sr" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.replaceChildren(icon("check"));
  announce("Copied");
  setTimeout(() => button.replaceChildren(icon("copy")), 1500);
}

/** Ask a question with a dialog; resolves to whether it was confirmed. */
export function confirm(question, action = "Delete") {
  const dialog = $("confirm");
  $("confirm-text").textContent = question;
  $("confirm-ok").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true });
  });
}

/** Offer text as a file. */
export function download(name, text) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "application/json" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const count = (number) => number.toLocaleString("en");

export const sleep = (milliseconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    }, { once: true });
  });
