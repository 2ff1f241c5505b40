// The settings: sampling and theme of this browser, the API key, and the system prompt of a conversation.

import { key } from "./api.js";
import { $, h } from "./dom.js";
import { state } from "./state.js";

const STORED = "gemwright.settings";
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 100, step: 0.05 },
  { name: "top_p", label: "Top-p", min: 0, max: 1, step: 0.01 },
  { name: "top_k", label: "Top-k", min: 0, step: 1 },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01 },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, step: 0.01 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1 },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1 },
  { name: "max_tokens", label: "Maximum tokens", min: 1, step: 1, fallback: "no limit" },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 32 - 1, step: 1, fallback: "random" },
];

function load() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

let values = load();

function put(name, value) {
  if (value === "" || value === false || value == null) delete values[name];
  else values[name] = value;
  localStorage.setItem(STORED, JSON.stringify(values));
}

/** Return the sampling fields of a request: those that are set. */
export function sampling() {
  const fields = {};
  for (const { name } of FIELDS) if (name in values) fields[name] = values[name];
  if (values.stop) fields.stop = values.stop.split("\n").filter(Boolean);
  return fields;
}

export const wantsTokens = () => values.logprobs === true;

export function lastSystem() {
  return values.system ?? "";
}

export const lastModel = { get: () => values.model, set: (name) => put("model", name) };

/** Show the defaults of the model in the empty fields. */
export function showDefaults() {
  for (const { name, fallback = "0" } of FIELDS) {
    $(`set-${name}`).placeholder = String(state.model?.sampling[name] ?? fallback);
  }
}

function buildFields() {
  for (const { name, label, fallback, ...limits } of FIELDS) {
    const id = `set-${name}`;
    const input = h("input", { id, type: "number", inputmode: "decimal", ...limits });
    input.value = values[name] ?? "";
    input.addEventListener("change", () => {
      if (input.checkValidity()) put(name, input.value === "" ? "" : Number(input.value));
      else input.reportValidity();
    });
    $("sampling-fields").append(h("div", {}, h("label", { for: id }, label), input));
  }
  const stop = h("textarea", { id: "set-stop", rows: 2, placeholder: "None" });
  stop.value = values.stop ?? "";
  stop.addEventListener("change", () => put("stop", stop.value));
  $("sampling-fields").append(h("div", { class: "whole" }, h("label", { for: "set-stop" }, "Stop strings, one per line"), stop));
}

function showTheme() {
  const theme = values.theme ?? "light dark";
  $("theme").value = theme;
  document.documentElement.style.colorScheme = theme;
}

/** Connect the dialog. `onchange` is called when the system prompt or the key changes. */
export function connectSettings(onchange) {
  buildFields();
  showTheme();
  const dialog = $("settings");
  $("open-settings").addEventListener("click", () => {
    $("system").value = state.current.system;
    $("key-setting").value = key.value;
    $("keep-key").checked = key.kept;
    dialog.showModal();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  $("theme").addEventListener("change", () => {
    put("theme", $("theme").value);
    showTheme();
  });
  $("logprobs").checked = wantsTokens();
  $("logprobs").addEventListener("change", () => put("logprobs", $("logprobs").checked));
  $("system").addEventListener("change", () => {
    state.current.system = $("system").value;
    put("system", state.current.system);
    onchange("system");
  });
  for (const id of ["key-setting", "keep-key"]) {
    $(id).addEventListener("change", () => {
      key.set($("key-setting").value, $("keep-key").checked);
      onchange("key");
    });
  }
  $("reset").addEventListener("click", () => {
    for (const { name } of FIELDS) put(name, $(`set-${name}`).value = "");
    put("stop", $("set-stop").value = "");
  });
}
