// The page: the models of the server, the list of conversations, and which pane is shown.

import { json, key } from "./api.js";
import { clearComposer, connectChat, showChat, showState } from "./chat.js";
import { connectComplete, showComplete } from "./complete.js";
import { exportText, importText, newConversation, openStore, remove, save } from "./conversations.js";
import { $, announce, confirm, download, h, iconButton, sleep } from "./dom.js";
import { isRunning, stop } from "./generate.js";
import { connectSettings, lastModel, lastSystem, showDefaults } from "./settings.js";
import { state } from "./state.js";

const NOTICE_MILLISECONDS = 500; // until the loading of a model is mentioned
const RETRY_SECONDS = 3; // while the server does not answer

// The banner: one sentence about the server or the page.

function showBanner(message, kind = "failure") {
  $("banner").hidden = !message;
  $("banner").className = kind;
  $("banner").replaceChildren(message, message ? iconButton("close", "Dismiss", () => showBanner("")) : "");
}

function failed(error) {
  if (error.kind === "key") return askForKey(error.message).then(connect);
  if (error.kind === "gone") return connect();
  if (["image", "store"].includes(error.kind)) showBanner(error.message);
}

function askForKey(message) {
  const dialog = $("key-dialog");
  if (!dialog.open) {
    $("key-message").textContent = message;
    $("key").value = "";
    dialog.showModal();
  }
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      if ($("key").value) key.set($("key").value, $("remember-key").checked);
      resolve();
    }, { once: true });
  });
}

// Models.

let connecting = null;
let chosen = ""; // name of the model that was chosen last

/** Read the models of the server, again and again until it answers. */
function connect() {
  connecting ??= attempt().finally(() => (connecting = null));
  return connecting;
}

async function attempt() {
  for (;;) {
    try {
      const { data } = await json("v1/models");
      state.models = data.map(({ id }) => id);
      await choose(state.models.includes(lastModel.get()) ? lastModel.get() : state.models[0]);
      return;
    } catch (error) {
      if (error.kind === "key") await askForKey(error.message);
      else {
        showBanner(error.message, error.kind === "loading" ? "wait" : "failure");
        await sleep(1000 * (error.retryAfter ?? RETRY_SECONDS));
      }
    }
  }
}

async function choose(name) {
  const notice = setTimeout(() => showBanner(`Loading ${name} …`, "wait"), NOTICE_MILLISECONDS);
  chosen = name;
  state.model = null; // nothing is sent meanwhile
  const model = await json(`page/model?model=${encodeURIComponent(name)}`).finally(() => clearTimeout(notice));
  if (chosen !== name) return; // another was chosen meanwhile
  state.model = model;
  showBanner("");
  const several = state.models.length > 1;
  $("model").replaceChildren(...state.models.map((id) => h("option", { value: id }, id)));
  $("model").value = name;
  $("model").hidden = !several;
  $("only-model").hidden = several;
  $("only-model").textContent = name;
  document.title = `${name} · gemwright`;
  showDefaults();
  showComplete();
  showPane();
}

// Panes.

function showPane() {
  const complete = location.hash === "#complete";
  $("chat").hidden = complete;
  $("complete").hidden = !complete;
  $("chat-tab").setAttribute("aria-pressed", String(!complete));
  $("complete-tab").setAttribute("aria-pressed", String(complete));
  const id = location.hash.slice(1);
  if (!complete) open(state.conversations.get(id) ?? (id ? newConversation(lastSystem()) : state.current));
}

function open(conversation) {
  if (conversation !== state.current) clearComposer();
  state.current = conversation;
  showChat();
  showList();
}

// The list of conversations.

const sidebarFloats = matchMedia("(width < 48rem)");

function showSidebar(shown) {
  document.body.classList.toggle("sidebar", shown);
  $("open-sidebar").setAttribute("aria-expanded", String(shown));
  const floating = shown && sidebarFloats.matches;
  $("backdrop").hidden = !floating;
  $("page").inert = floating;
  $("sidebar").inert = !shown;
}

function closeFloating() {
  if (!sidebarFloats.matches) return;
  showSidebar(false);
  $("open-sidebar").focus();
}

function showList() {
  const all = [...state.conversations.values()].sort((a, b) => b.changed - a.changed);
  $("no-conversations").hidden = all.length > 0;
  $("export-all").disabled = !all.length;
  $("conversations").replaceChildren(...all.map(listItem));
}

function listItem(conversation) {
  const title = conversation.title || "Untitled";
  const link = h("a", {
    href: `#${conversation.id}`,
    "aria-current": conversation === state.current && location.hash !== "#complete" ? "page" : null,
    onclick: closeFloating,
  }, title, isRunning(conversation) && h("span", { class: "busy", role: "img", "aria-label": "generating" }));
  return h("li", {}, link, h("span", { class: "tools" },
    iconButton("edit", `Rename ${title}`, ({ currentTarget }) => rename(conversation, currentTarget.closest("li"))),
    iconButton("export", `Export ${title}`, () => download(`${conversation.id}.json`, exportText([conversation]))),
    iconButton("trash", `Delete ${title}`, () => erase([conversation], `Delete “${title}”?`)),
  ));
}

function rename(conversation, item) {
  const input = h("input", { "aria-label": "Title", maxlength: 200 });
  input.value = conversation.title;
  const finish = (keep) => {
    if (!input.isConnected) return;
    if (keep && input.value.trim()) conversation.title = input.value.trim();
    save(conversation);
    showList();
    document.querySelector(`#conversations a[href="#${conversation.id}"]`)?.focus();
  };
  input.addEventListener("blur", () => finish(true));
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") finish(false);
    event.stopPropagation();
  });
  item.replaceChildren(input);
  input.focus();
  input.select();
}

async function erase(conversations, question) {
  if (!(await confirm(question))) return;
  for (const conversation of conversations) {
    stop(conversation);
    state.conversations.delete(conversation.id);
    await remove(conversation.id);
  }
  if (!state.conversations.has(state.current.id)) location.hash = "#new";
  showList();
  announce("Deleted");
}

async function importFile(file) {
  try {
    const conversations = importText(await file.text());
    for (const conversation of conversations) {
      state.conversations.set(conversation.id, conversation);
      await save(conversation);
    }
    showList();
    showBanner(`${conversations.length} ${conversations.length === 1 ? "conversation" : "conversations"} imported.`, "info");
  } catch (error) {
    showBanner(error.message);
  }
}

function startNew() {
  if (location.hash === "#new") open(newConversation(lastSystem()));
  location.hash = "#new";
  closeFloating();
  $("input").focus();
}

function connectSidebar() {
  showSidebar(!sidebarFloats.matches);
  document.body.classList.remove("starting");
  sidebarFloats.addEventListener("change", () => showSidebar(!sidebarFloats.matches));
  $("open-sidebar").addEventListener("click", () => {
    showSidebar(!document.body.classList.contains("sidebar"));
    if (sidebarFloats.matches) $("close-sidebar").focus();
  });
  $("close-sidebar").addEventListener("click", closeFloating);
  $("backdrop").addEventListener("click", closeFloating);
  $("sidebar").addEventListener("keydown", (event) => event.key === "Escape" && closeFloating());
  $("new").addEventListener("click", startNew);
  $("export-all").addEventListener("click", () =>
    download("gemwright-conversations.json", exportText([...state.conversations.values()])));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    await importFile($("import-file").files[0]);
    $("import-file").value = "";
  });
}

function changed(conversation) {
  if (!state.conversations.has(conversation.id)) {
    state.conversations.set(conversation.id, conversation);
    history.replaceState(null, "", `#${conversation.id}`);
  }
  showList();
}

const changedSystem = () => state.conversations.has(state.current.id) && save(state.current);

async function start() {
  for (const conversation of await openStore()) state.conversations.set(conversation.id, conversation);
  state.current = newConversation(lastSystem());
  connectSettings((what) => (what === "key" ? connect() : changedSystem()));
  connectChat({ changed, failed });
  connectComplete(failed);
  connectSidebar();
  $("model").addEventListener("change", () => {
    lastModel.set($("model").value);
    choose($("model").value).catch((error) => (error.kind === "refused" ? showBanner(error.message) : connect()));
  });
  $("chat-tab").addEventListener("click", () => (location.hash = state.conversations.has(state.current.id) ? state.current.id : "#new"));
  $("complete-tab").addEventListener("click", () => (location.hash = "#complete"));
  $("delete-all").addEventListener("click", () => {
    $("settings").close();
    erase([...state.conversations.values()], "Delete all conversations of this browser?");
  });
  addEventListener("hashchange", showPane);
  document.addEventListener("keydown", (event) => {
    if (event.altKey && event.code === "KeyN") startNew();
  });
  showPane();
  await connect();
  showState();
}

start();
