// Conversations and where they are kept: each is a tree of messages, and one path of it is shown.
//
// conversation: {id, title, created, changed, system, leaf, nodes: {id: message}}
// message: {id, parent, role, text, images, created} and of a reply model, finish, error, usage, seconds, rest, tokens, objects

const IMAGE = /^data:image\/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/;
const ID = /^[0-9a-f]{24}$/;
const FORMAT = "gemwright-conversations-1";
const MAX_NODES = 100_000;

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId(), title: "", created: now, changed: now, system, leaf: null, nodes: {} };
}

/** Add a message after `parent` and show it. */
export function addMessage(conversation, parent, role, text = "", images = []) {
  const message = { id: newId(), parent, role, text, images, created: Date.now() };
  conversation.nodes[message.id] = message;
  conversation.leaf = message.id;
  conversation.changed = message.created;
  if (!conversation.title && role === "user") conversation.title = (text.trim() || "Image").replace(/\s+/g, " ").slice(0, 60);
  return message;
}

/** Return the messages from the first to `leaf`. */
export function pathTo(conversation, leaf = conversation.leaf) {
  const path = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) path.push(node);
  return path.reverse();
}

const children = (conversation, parent) =>
  Object.values(conversation.nodes).filter((node) => node.parent === parent).sort((a, b) => a.created - b.created);

/** Return the messages that share the parent of `node`, in the order of their creation. */
export const siblings = (conversation, node) => children(conversation, node.parent);

/** Show the branch of `node`, down to its newest message. */
export function showBranch(conversation, node) {
  let leaf = node;
  for (let next = node; next; next = children(conversation, leaf.id).at(-1)) leaf = next;
  conversation.leaf = leaf.id;
}

export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, conversations }, null, 1);
}

/** Return the conversations of an exported file, with new ids; throws an Error with a sentence. */
export function importText(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON: choose a file that this page has exported.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) {
    throw new Error(`The file is not an export of conversations (${FORMAT}): choose a file that this page has exported.`);
  }
  return file.conversations.map(checked);
}

const text = (value, limit = 10_000_000) => (typeof value === "string" ? value.slice(0, limit) : "");
const number = (value) => (Number.isFinite(value) ? value : undefined);

function checked(value) {
  const nodes = {};
  for (const [id, node] of Object.entries(value?.nodes ?? {}).slice(0, MAX_NODES)) {
    if (ID.test(id)) nodes[id] = checkedMessage(id, node);
  }
  for (const node of Object.values(nodes)) if (!nodes[node.parent]) node.parent = null;
  breakCycles(nodes);
  const conversation = newConversation(text(value?.system));
  Object.assign(conversation, { nodes, title: text(value?.title, 200), created: number(value?.created) ?? Date.now() });
  conversation.leaf = ID.test(value?.leaf) && nodes[value.leaf] ? value.leaf : (Object.keys(nodes).at(-1) ?? null);
  return conversation;
}

function checkedMessage(id, node) {
  return {
    id,
    parent: ID.test(node?.parent) ? node.parent : null,
    role: node?.role === "assistant" ? "assistant" : "user",
    text: text(node?.text),
    images: Array.isArray(node?.images) ? node.images.filter((image) => IMAGE.test(image)) : [],
    created: number(node?.created) ?? 0,
    model: text(node?.model, 200) || undefined,
    finish: text(node?.finish, 40) || undefined,
    usage: node?.usage && { prompt: number(node.usage.prompt), completion: number(node.usage.completion) },
    seconds: number(node?.seconds),
    rest: number(node?.rest),
  };
}

function breakCycles(nodes) {
  const safe = new Set();
  for (let node of Object.values(nodes)) {
    const trail = new Set();
    for (; node && !safe.has(node.id); node = nodes[node.parent]) {
      trail.add(node.id);
      if (trail.has(node.parent)) node.parent = null;
    }
    for (const id of trail) safe.add(id);
  }
}

// The browser's database, one record per conversation. Without it (private windows) they last as long as the page.

let database = null;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const records = (mode) => database?.transaction("conversations", mode).objectStore("conversations");

/** Open the database and return all conversations. */
export async function openStore() {
  try {
    const request = indexedDB.open("gemwright", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    database = await done(request);
    return await done(records("readonly").getAll());
  } catch {
    database = null;
    return [];
  }
}

/** Keep a conversation; resolves to whether it was possible. */
export async function save(conversation) {
  try {
    if (database) await done(records("readwrite").put(conversation));
    return database !== null;
  } catch {
    return false;
  }
}

export async function remove(id) {
  if (database) await done(records("readwrite").delete(id));
}
