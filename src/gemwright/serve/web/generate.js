// Generate a reply: the request, its stream, its numbers and its errors, all noted on the message.

import { ServerError, stream, tokensOf } from "./api.js";
import { pathTo, save } from "./conversations.js";
import { count, sleep } from "./dom.js";
import { sampling, wantsTokens } from "./settings.js";
import { state } from "./state.js";

const TOP = 5; // alternatives recorded at each token
const SAVE_INTERVAL = 3000; // in milliseconds, so that a closed page loses little
const MIN_SECONDS = 0.05; // of a text whose speed is shown
const running = new Map(); // the reply and AbortController of each conversation that generates

export const isRunning = (conversation, reply = null) =>
  running.has(conversation.id) && (!reply || running.get(conversation.id).reply === reply);

export function stop(conversation) {
  running.get(conversation.id)?.controller.abort(new Error("stopped"));
}

function asMessage(role, text, images = []) {
  if (!images.length) return { role, content: text };
  const parts = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return { role, content: text ? [...parts, { type: "text", text }] : parts };
}

/** Return the images of the last message up to `leaf` that has any. */
export const lastImages = (conversation, leaf) =>
  pathTo(conversation, leaf).findLast((message) => message.images.length)?.images ?? [];

function messagesFor(conversation, reply) {
  const path = pathTo(conversation, reply.parent);
  if (state.model.single_turn) {
    return [asMessage("user", path.at(-1).text, lastImages(conversation, reply.parent))];
  }
  const messages = path
    .filter((message) => message.text || message.images.length)
    .map((message) => asMessage(message.role, message.text, message.images));
  if (conversation.system) messages.unshift({ role: "system", content: conversation.system });
  if (reply.text) messages.push({ role: "assistant", content: reply.text }); // to be continued
  return messages;
}

/** Repeat `attempt` while the model is being loaded. */
export async function whenLoaded(attempt, signal, onwait) {
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (error.kind !== "loading") throw error;
      onwait(error.message);
      await sleep(1000 * (error.retryAfter ?? 2), signal);
    }
  }
}

async function receive(conversation, reply, signal, update) {
  const body = { model: state.model.name, messages: messagesFor(conversation, reply), ...sampling() };
  if (wantsTokens()) Object.assign(body, { logprobs: true, top_logprobs: TOP });
  const watch = new Stopwatch();
  let saved = 0;
  for await (const chunk of stream("v1/chat/completions", body, signal)) {
    const choice = chunk.choices[0];
    const text = choice?.delta?.content ?? "";
    watch.note(text, reply);
    reply.text += text;
    reply.tokens.push(...tokensOf(choice?.logprobs));
    if (choice?.finish_reason) reply.finish = choice.finish_reason;
    if (chunk.usage) reply.usage = { prompt: chunk.usage.prompt_tokens, completion: chunk.usage.completion_tokens };
    reply.waiting = undefined;
    update();
    if (performance.now() - saved > SAVE_INTERVAL) {
      saved = performance.now();
      save(conversation);
    }
  }
}

/** Generate or continue a reply; `update` is called whenever the message has changed. */
export async function generate(conversation, reply, update) {
  stop(conversation);
  const controller = new AbortController();
  const { signal } = controller;
  const run = { reply, controller };
  running.set(conversation.id, run);
  Object.assign(reply, { model: state.model.name, error: undefined, finish: undefined, usage: undefined });
  if (!reply.text) reply.tokens = [];
  update();
  try {
    await whenLoaded(() => receive(conversation, reply, signal, update), signal, (message) => {
      reply.waiting = message;
      update();
    });
  } catch (error) {
    if (signal.aborted) reply.finish = "stopped";
    else reply.error = { kind: error instanceof ServerError ? error.kind : "refused", message: error.message };
  }
  reply.waiting = undefined;
  conversation.changed = Date.now();
  if (running.get(conversation.id) === run) running.delete(conversation.id);
  const kept = await save(conversation);
  update();
  return kept;
}

/** Return the tokens per second after the first piece of a reply; null if it is too short. */
export function speed({ usage, seconds, rest }) {
  return usage && seconds > MIN_SECONDS ? (usage.completion * rest) / seconds : null;
}

export const tokenCount = (number) => `${count(number)} ${number === 1 ? "token" : "tokens"}`;

/** Times the pieces of a text. A piece may hold several tokens, so `rest` is the share of the text after the first. */
export class Stopwatch {
  #first = 0;
  #firstLength = 0;
  #length = 0;

  note(piece, reply) {
    if (!piece) return;
    this.#length += piece.length;
    this.#first ||= performance.now();
    this.#firstLength ||= piece.length;
    reply.seconds = (performance.now() - this.#first) / 1000;
    reply.rest = 1 - this.#firstLength / this.#length;
  }
}
