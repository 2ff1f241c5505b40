// The view of one message: a text of the user, or a reply with its image, numbers, errors and actions.

import { siblings } from "./conversations.js";
import { copy, h, icon, iconButton } from "./dom.js";
import { isRunning, lastImages, speed, tokenCount } from "./generate.js";
import { Markdown } from "./markdown.js";
import { drawObjects, findObjects } from "./objects.js";
import { hideTip, showTokens } from "./tokens.js";

const FINISHES = { length: "length limit", stopped: "stopped", content_filter: "filtered" };
const TITLES = {
  busy: "The queue of the server is full",
  cut: "The connection was lost",
  gone: "The server does not answer",
  key: "The server asks for a key",
  loading: "The model is loading",
  refused: "The server refused the request",
};

/** Return the view of a message: {element, update, focus}. `actions` are the functions of chat.js. */
export function messageView(conversation, message, actions) {
  return message.role === "user" ? userView(conversation, message, actions) : replyView(conversation, message, actions);
}

function branches(conversation, message, actions) {
  const all = siblings(conversation, message);
  if (all.length < 2) return null;
  const at = all.indexOf(message);
  const go = (step) => iconButton(
    step < 0 ? "left" : "right", step < 0 ? "Previous branch" : "Next branch",
    () => actions.branch(all[at + step], step), { disabled: !all[at + step], class: `icon branch${step}` },
  );
  return h("span", { class: "branches" }, go(-1), h("span", {}, `${at + 1} / ${all.length}`), go(1));
}

function userView(conversation, message, actions) {
  const element = h("article", { class: "message user" });
  const edit = () => {
    const area = h("textarea", { "aria-label": "Edited message", rows: 3 });
    area.value = message.text;
    const form = h("form", { class: "edit", onsubmit: (event) => {
      event.preventDefault();
      actions.resend(message, area.value.trim());
    } }, area, h("div", { class: "row end" },
      h("button", { type: "button", class: "quiet", onclick: () => update("edit") }, "Cancel"),
      h("button", { class: "primary" }, "Send")));
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") update("edit");
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    element.replaceChildren(form);
    area.focus();
  };
  const update = (focus) => {
    const copyButton = iconButton("copy", "Copy", () => copy(copyButton, message.text));
    const editButton = iconButton("edit", "Edit and send again", edit);
    element.replaceChildren(...[
      h("h2", { class: "sr" }, "You"),
      message.images.length > 0 && h("div", { class: "images" }, ...message.images.map((src, i) => h("img", { src, alt: `Image ${i + 1}` }))),
      message.text && h("div", { class: "bubble" }, message.text),
      h("footer", {}, branches(conversation, message, actions), editButton, copyButton),
    ].filter(Boolean));
    if (focus === "edit") editButton.focus();
  };
  update();
  return { element, update };
}

function replyView(conversation, message, actions) {
  const body = h("div", { class: "body" });
  const tokens = h("div", { class: "tokens code", tabindex: "0", role: "group", "aria-label": "Tokens; the arrow keys show their probabilities", hidden: true });
  const [figure, alert, footer] = [h("div"), h("div"), h("footer")];
  const heading = h("h2", { class: "who" });
  const element = h("article", { class: "message reply" }, heading, body, tokens, figure, alert, footer);
  const markdown = new Markdown(body);

  const toggleTokens = ({ currentTarget }) => {
    tokens.hidden = !tokens.hidden;
    body.hidden = !tokens.hidden;
    currentTarget.setAttribute("aria-pressed", String(!tokens.hidden));
    if (!tokens.hidden) showTokens(tokens, message.tokens);
    hideTip();
  };
  const controls = () => {
    const copyButton = iconButton("copy", "Copy", () => copy(copyButton, message.text));
    return [
      branches(conversation, message, actions),
      !message.error && iconButton("redo", "Regenerate", () => actions.regenerate(message)),
      message.text && !message.error && message.finish !== "stop" && iconButton("more", "Continue", () => actions.extend(message)),
      message.text && copyButton,
      message.tokens?.length > 0 && iconButton("tokens", "Token probabilities", toggleTokens, { "aria-pressed": String(!tokens.hidden) }),
      h("span", { class: "meta" }, numbers(message)),
    ];
  };
  const update = () => {
    const active = isRunning(conversation, message);
    heading.textContent = message.model ?? "Model";
    element.setAttribute("aria-busy", String(active));
    markdown.render(message.text);
    if (!tokens.hidden) showTokens(tokens, message.tokens);
    element.classList.toggle("streaming", active && message.text !== "");
    alert.replaceChildren(...notice(message, active, actions));
    footer.replaceChildren(...(active ? [] : controls().filter(Boolean)));
    if (!active) showObjects(conversation, message, body, figure);
  };
  update();
  return { element, update };
}

function numbers(message) {
  const rate = speed(message);
  return [
    message.usage?.completion != null && tokenCount(message.usage.completion),
    rate && `${rate.toFixed(1)} tokens/s`,
    FINISHES[message.finish],
  ].filter(Boolean).join(" · ");
}

function notice(message, active, actions) {
  if (active && message.waiting) return [h("p", { class: "faint waiting" }, message.waiting)];
  if (active && !message.text) return [h("div", { class: "dots", role: "img", "aria-label": "Generating" }, h("i"), h("i"), h("i"))];
  if (!message.error) return [];
  const { kind, message: sentence } = message.error;
  return [h("div", { class: "error", role: "alert" },
    h("strong", {}, TITLES[kind]), h("p", {}, sentence),
    h("button", { type: "button", onclick: () => actions.retry(message) }, icon("redo"), message.text ? "Continue" : "Try again"))];
}

async function showObjects(conversation, message, body, figure) {
  const [image] = lastImages(conversation, message.parent);
  if (!image || figure.childElementCount) return;
  message.objects ??= await findObjects(message.text).catch(() => null);
  if (!message.objects) return;
  figure.replaceChildren(drawObjects(image, message.objects));
  body.classList.add("tagged");
}
