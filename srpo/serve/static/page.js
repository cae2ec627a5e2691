"use strict";
// Text of prompts and answers enters the page through textContent alone, never as HTML.
const at = (id) => document.getElementById(id);
const state = { model: "", votes: false, steps: [], prompt: null, pair: null, running: false };

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function say(text, error) {
  at("status").textContent = text;
  at("status").className = error ? "error" : "";
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if (at("key").value) found.Authorization = `Bearer ${at("key").value}`;
  return found;
}

async function problem(response) {
  const body = await response.json().catch(() => ({}));
  return body.error ? body.error.message : `the server answered ${response.status}`;
}

// ---------------------------------------------------------------- draft and revisions

const TAGS = { same: "span", removed: "del", added: "ins" };

function card(step) {
  const made = element("article", undefined, step.kept ? "" : "refused");
  made.append(element("h3", step.step));
  const text = element("p", undefined, "text");
  for (const [change, piece] of step.diff) text.append(element(TAGS[change], piece));
  if (!step.text) text.append(element("span", "(empty)", "note"));
  const notes = [];
  if (step.confidence !== null) notes.push(`confidence ${step.confidence.toFixed(2)}`);
  if (!step.kept) notes.push("not kept");
  if (!step.finished) notes.push("cut off");
  notes.push(`${step.tokens} tokens`);
  made.append(text, element("p", notes.join(", "), "note"));
  return made;
}

function show() {
  at("steps").replaceChildren(...state.steps.map(card));
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

async function run() {
  if (state.running || !at("prompt").value.trim()) return;
  state.running = true;
  at("run").disabled = true;
  at("vote").hidden = true;
  state.steps = [];
  state.pair = null;
  show();
  say("Writing the draft…");
  const blind = at("blind").checked;
  const user = { role: "user", content: at("prompt").value };
  const system = at("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, user] : [user];
  state.prompt = system ? messages : user.content;
  const body = { model: state.model, messages, stream: true, return_trail: "diff" };
  body.n_revisions = Number(at("revisions").value);
  if (at("policy").value) body.policy = at("policy").value;
  if (at("temperature").value) body.temperature = Number(at("temperature").value);
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await problem(response));
    let stopped = "";
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const srpo = event.choices.length ? event.choices[0].srpo : null;
      if (srpo && srpo.event) {
        state.steps.push(srpo.event);
        if (!blind) show();
        say(`Written: ${srpo.event.step}…`);
      } else if (srpo) {
        stopped = `${srpo.revisions} ${srpo.revisions === 1 ? "revision" : "revisions"}; stopped: ${srpo.stopped}`;
      }
    }
    say(stopped);
    ask(blind);
  } catch (error) {
    say(error.message, true);
  } finally {
    state.running = false;
    at("run").disabled = false;
  }
}

// ---------------------------------------------------------------- votes

function ask(blind) {
  const draft = state.steps[0];
  const other = [...state.steps].reverse().find((step) => step.text !== draft.text);
  if (!state.votes || !other || !draft.text.trim() || !other.text.trim()) {
    if (blind) {
      show();
      say("There are no two different answers to vote on, or the server takes no votes.");
    }
    return;
  }
  const swapped = crypto.getRandomValues(new Uint8Array(1))[0] % 2 === 1;
  const [first, second] = swapped ? [other, draft] : [draft, other];
  state.pair = { first, second, blind };
  at("a").textContent = first.text;
  at("b").textContent = second.text;
  at("vote").hidden = false;
  if (blind) {
    say("Draft and revision in random order: 1, 2 or 3 votes.");
    document.querySelector("[data-vote]").focus();  // else the digit would be typed into the prompt
  }
}

async function vote(choice) {
  if (!state.pair) return;
  const { first, second, blind } = state.pair;
  const shown = { first: first.step, second: second.step };
  const body = { prompt: state.prompt, first: first.text, second: second.text, vote: choice, shown, blind };
  state.pair = null;
  try {
    const response = await fetch("v1/votes", { method: "POST", headers: headers(), body: JSON.stringify(body) });
    if (!response.ok) throw new Error(await problem(response));
    say(`Thank you: your vote is recorded. A was ${first.step}, B was ${second.step}.`);
  } catch (error) {
    say(error.message, true);
  }
  at("vote").hidden = true;
  show();
}

// ---------------------------------------------------------------- start

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("revisions").addEventListener("input", () => { at("count").value = at("revisions").value; });
for (const button of document.querySelectorAll("[data-vote]")) {
  button.addEventListener("click", () => vote(button.dataset.vote));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
  const typing = ["TEXTAREA", "INPUT", "SELECT"].includes(event.target.tagName) && event.target.type !== "checkbox";
  const choice = { 1: "first", 2: "tie", 3: "second" }[event.key];
  if (choice && !typing && !event.ctrlKey && !event.altKey && !event.metaKey) vote(choice);
});
fetch("health").then((response) => response.json()).then((health) => {
  state.model = health.model;
  state.votes = health.votes;
  at("model").textContent = `${health.model}, policy ${health.policy}`;
  at("revisions").max = String(Math.min(10, health.max_revisions));
  at("revisions").value = at("count").value = String(health.revisions);
}).catch(() => say("The server does not answer.", true));
