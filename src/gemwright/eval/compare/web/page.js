// Shows one pair after another. The text of models is only ever set as text, never as HTML.

const KEYS = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", t: "tie", 0: "tie", s: "skip", u: "undo", Backspace: "undo" };
const NAMES = { left: "Left was better.", right: "Right was better.", tie: "A tie.", skip: "Skipped; the pair comes again at the end." };
const tab = crypto.randomUUID();
const find = (id) => document.getElementById(id);
const buttons = ["left", "tie", "right", "skip", "undo"].map(find);
let state = null;
let isBusy = false;

function element(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function block(title, className, text) {
  const body = element("div", text ? "text" : "text empty", text || "Empty");
  body.dir = "auto";
  return element("section", className, element("h2", "", title), body);
}

function show(next, message) {
  state = next;
  const isDone = state.pair === null;
  find("count").textContent = `${state.judged} of ${state.total} judged`;
  find("bar").max = Math.max(1, state.total);
  find("bar").value = state.judged;
  find("pair").hidden = find("choices").hidden = isDone;
  find("end").hidden = !isDone;
  find("message").textContent = isDone ? "" : message;
  if (isDone) return;
  const several = state.turns.length > 1;
  find("pair").replaceChildren(...state.turns.map((turn, index) => {
    const number = several ? ` ${index + 1}` : "";
    return element("article", "turn",
      block(`Prompt${number}`, "prompt", turn.prompt),
      block(`Left answer${number}`, "answer left", turn.left),
      block(`Right answer${number}`, "answer right", turn.right));
  }));
  find("pair").scrollTop = 0;
}

async function ask(path, body) {
  const response = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ tab, ...body }),
  });
  return { status: response.status, body: await response.json() };
}

async function act(choice) {
  if (isBusy || !state || state.pair === null || (choice === "undo" && !state.can_undo)) return;
  isBusy = true;
  enable();
  try {
    let reply = choice === "undo" ? await ask("undo", {}) : await ask("judge", { pair: state.pair, verdict: choice });
    let message = choice === "undo" ? "The last verdict was taken back." : NAMES[choice];
    if (reply.status === 409) {
      message = reply.body.error;
      reply = await ask("next", {});
    }
    if (reply.status === 200) show(reply.body, message);
    else find("message").textContent = reply.body.error;
  } catch {
    find("message").textContent = "The program has ended, or does not answer. This verdict was not kept; start it again to go on.";
  }
  isBusy = false;
  enable();
}

function enable() {
  for (const button of buttons) button.disabled = isBusy || (button.id === "undo" && !state?.can_undo);
}

for (const button of buttons) button.addEventListener("click", () => act(button.id));
addEventListener("keydown", (event) => {
  const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!choice || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  act(choice);
});

ask("next", {}).then((reply) => {
  show(reply.body, "Judge with the keys ← and →, or 1 and 2; T is a tie.");
  enable();
  find("pair").focus();
}).catch(() => { find("message").textContent = "The program does not answer; start it again."; });
