// Completion of a text, or of the gap between two, without a conversation.

import { stream, tokensOf } from "./api.js";
import { $, announce } from "./dom.js";
import { Stopwatch, speed, tokenCount, whenLoaded } from "./generate.js";
import { sampling, wantsTokens } from "./settings.js";
import { state } from "./state.js";
import { hideTip, showTokens } from "./tokens.js";

const MAX_TOKENS = 256; // unless set
const TOP = 5; // alternatives recorded at each token

let controller = null;
let text = "";

/** Show the pane for the model: with a gap if it can fill one. */
export function showComplete() {
  const gap = Boolean(state.model?.infill);
  $("after-box").hidden = !gap;
  $("before-label").textContent = gap ? "Before the gap" : "Text";
  $("result-label").textContent = gap ? "In the gap" : "Continuation";
  $("complete-help").textContent = gap
    ? "The model writes what belongs between two pieces of code. Without the second piece it continues the first."
    : "The model continues the text, without the turns of a conversation.";
}

function showRunning(running) {
  $("run-complete").hidden = running;
  $("stop-complete").hidden = !running;
  $("accept").disabled = running || !text;
  $("result").setAttribute("aria-busy", String(running));
}

async function receive(signal) {
  const body = { model: state.model.name, prompt: $("before").value, max_tokens: MAX_TOKENS, ...sampling() };
  if (state.model.infill && $("after").value) body.suffix = $("after").value;
  if (wantsTokens()) body.logprobs = TOP;
  const reply = { seconds: 0, usage: null, finish: "" };
  const tokens = [];
  const watch = new Stopwatch();
  for await (const chunk of stream("v1/completions", body, signal)) {
    const choice = chunk.choices[0];
    if (choice?.text) {
      watch.note(choice.text, reply);
      text += choice.text;
      $("result").textContent = text;
    }
    tokens.push(...tokensOf(choice?.logprobs));
    reply.finish = choice?.finish_reason ?? reply.finish;
    if (chunk.usage) reply.usage = { completion: chunk.usage.completion_tokens };
  }
  if (tokens.length) showTokens($("result"), tokens);
  const rate = speed(reply);
  return [
    reply.usage && tokenCount(reply.usage.completion), rate && `${rate.toFixed(1)} tokens/s`,
    reply.finish === "length" && "length limit",
  ].filter(Boolean).join(" · ");
}

async function run(failed) {
  if (!state.model || !$("run-complete").checkVisibility()) return;
  controller = new AbortController();
  const { signal } = controller;
  text = "";
  hideTip();
  $("result").replaceChildren();
  $("result-meta").textContent = "";
  $("result-box").hidden = false;
  showRunning(true);
  announce("Generating");
  try {
    const wait = (message) => ($("result-meta").textContent = message);
    $("result-meta").textContent = await whenLoaded(() => receive(signal), signal, wait);
    announce("The text is complete");
  } catch (error) {
    $("result-meta").textContent = signal.aborted ? "stopped" : error.message;
    if (!signal.aborted) failed(error);
  }
  showRunning(false);
}

function discard() {
  controller?.abort(new Error("stopped"));
  text = "";
  $("result-box").hidden = true;
  hideTip();
  $("before").focus();
}

/** Connect the pane; `failed` gets an error. */
export function connectComplete(failed) {
  const form = $("complete-form");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(failed);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) run(failed);
    if (event.key === "Escape") controller?.abort(new Error("stopped"));
  });
  $("stop-complete").addEventListener("click", () => controller?.abort(new Error("stopped")));
  $("accept").addEventListener("click", () => {
    $("before").value += text;
    discard();
  });
  $("discard").addEventListener("click", discard);
}
