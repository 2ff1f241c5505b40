// The chat: the transcript of a conversation, the composer, and what can be done with a message.

import { addMessage, pathTo, save, showBranch } from "./conversations.js";
import { $, announce, count, h, svg } from "./dom.js";
import { generate, isRunning, stop } from "./generate.js";
import { connectImages, hasImages, setImages, takeImages } from "./images.js";
import { messageView } from "./message.js";
import { hideTip } from "./tokens.js";
import { state } from "./state.js";

const NEAR_END = 80; // in pixels; closer to the end, the transcript follows the text
const EXAMPLES = ["caption en", "detect cat ; dog", "segment person"]; // tasks that PaliGemma knows

let views = new Map(); // of the messages that are shown, by id
let following = true; // whether the end of the transcript is in view
let listeners = null; // {changed, failed}

/** Show the current conversation. */
export function showChat() {
  const path = pathTo(state.current);
  views = new Map(path.map((message) => [message.id, messageView(state.current, message, actions)]));
  $("transcript").replaceChildren(...[...views.values()].map((view) => view.element));
  $("chat-title").textContent = state.current.title || "New conversation";
  $("welcome").hidden = path.length > 0;
  if (!path.length) showWelcome();
  showState();
  following = true;
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

function showWelcome() {
  const { model } = state;
  if (!model) return $("welcome").replaceChildren();
  const facts = [`${count(model.context)} tokens of context`, model.images && "reads images", model.infill && "fills gaps"];
  $("welcome").replaceChildren(
    svg("svg", { class: "gem", "aria-hidden": "true" }, svg("use", { href: "web/icons.svg#gem" })),
    h("p", { class: "title" }, model.name),
    h("p", { class: "faint" }, facts.filter(Boolean).join(" · ")),
    ...(model.single_turn ? [h("p", {}, "Add an image and name a task:"), h("div", { class: "chips" }, ...EXAMPLES.map(chip))] : []),
    ...(model.tuned || model.single_turn ? [] : [h("p", { class: "note" },
      "This model is not tuned for conversations: it continues texts. ", h("a", { href: "#complete" }, "Complete a text"), " instead.")]),
  );
}

const chip = (text) => h("button", { type: "button", onclick: () => {
  $("input").value = text;
  $("input").focus();
} }, text);

/** Show whether the conversation generates, and how much of its context it uses. */
export function showState() {
  const busy = isRunning(state.current);
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  $("attach").hidden = !state.model?.images;
  const usage = pathTo(state.current).findLast((message) => message.usage?.prompt != null)?.usage;
  const used = usage ? usage.prompt + usage.completion : 0;
  $("context").textContent = used && state.model ? `${count(used)} of ${count(state.model.context)} tokens of context` : "";
}

async function run(conversation, reply) {
  let frame = 0;
  const draw = () => {
    frame = 0;
    if (state.current !== conversation) return;
    views.get(reply.id)?.update();
  };
  const task = generate(conversation, reply, () => (frame ||= requestAnimationFrame(draw)));
  if (state.current === conversation) showChat();
  announce("Generating");
  listeners.changed(conversation);
  const kept = await task;
  cancelAnimationFrame(frame);
  draw();
  if (state.current === conversation) showState();
  announce(reply.error ? reply.error.message : reply.finish === "stopped" ? "Stopped" : "The reply is complete");
  if (!kept) listeners.failed({ kind: "store", message: "This browser does not keep conversations: export what you need." });
  if (reply.error) listeners.failed(reply.error);
  listeners.changed(conversation);
}

function ask(parent, text, images) {
  const conversation = state.current;
  const message = addMessage(conversation, parent, "user", text, images);
  return run(conversation, addMessage(conversation, message.id, "assistant"));
}

const actions = {
  resend: (message, text) => (text || message.images.length) && ask(message.parent, text, message.images),
  regenerate: (message) =>
    run(state.current, message.text ? addMessage(state.current, message.parent, "assistant") : message),
  retry: (message) => run(state.current, message),
  extend: (message) => run(state.current, message),
  branch(message, step) {
    showBranch(state.current, message);
    save(state.current);
    showChat();
    const view = views.get(message.id).element;
    (view.querySelector(`.branch${step}:enabled`) ?? view.querySelector(".branches button:enabled")).focus();
    view.scrollIntoView({ block: "nearest" });
  },
};

function send() {
  const text = $("input").value.trim();
  if (!state.model || isRunning(state.current) || !(text || hasImages())) return;
  $("input").value = "";
  resize();
  ask(state.current.leaf, text, takeImages());
}

function resize() { // for browsers without field-sizing
  if (CSS.supports("field-sizing", "content")) return;
  $("input").style.blockSize = "auto";
  $("input").style.blockSize = `${$("input").scrollHeight}px`;
}

/** Connect the composer. `changed` gets a conversation after each change, `failed` an error. */
export function connectChat(callbacks) {
  listeners = callbacks;
  connectImages((message) => callbacks.failed({ kind: "image", message }));
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("input").addEventListener("input", resize);
  $("input").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
  $("stop").addEventListener("click", () => {
    stop(state.current);
    $("input").focus();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop(state.current);
  });
  follow();
}

/** Keep the end of the transcript in view while it grows, unless the reader has scrolled away from it. */
function follow() {
  const scroll = $("scroll");
  const toEnd = () => following && (scroll.scrollTop = scroll.scrollHeight);
  scroll.addEventListener("scroll", () => {
    hideTip();
    following = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_END;
  }, { passive: true });
  const observer = new ResizeObserver(toEnd);
  observer.observe($("transcript"));
  observer.observe(scroll);
}

/** Empty the composer. */
export function clearComposer() {
  $("input").value = "";
  setImages([]);
}
