// The try box: one streamed completion gives both the verdict and the guarded answer.
// Texts go into the page as text, never as HTML.
"use strict";

const form = document.getElementById("try");
const message = document.getElementById("message");
const key = document.getElementById("key");
const region = document.getElementById("region");
const verdict = document.getElementById("verdict");
const answer = document.getElementById("answer");
const send = form.querySelector("button[type=submit]");

function headers() {
  const known = { "content-type": "application/json" };
  if (key && key.value.trim()) known.authorization = `Bearer ${key.value.trim()}`;
  return known;
}

function show(rows) {
  verdict.replaceChildren();
  for (const [name, value, look] of rows) {
    const term = document.createElement("dt");
    term.textContent = name;
    const detail = document.createElement("dd");
    const text = document.createElement("span");
    text.textContent = value;
    if (look) text.className = look;
    detail.append(text);
    verdict.append(term, detail);
  }
}

const plain = (name) => name.replaceAll("_", " ");

function verdictRows(summary) {
  const states = Object.entries(summary.detectors).map(([name, state]) => `${name} ${state}`);
  return [
    ["Decision", `${summary.decision} (${summary.stage})`],
    ["Severity", `S${summary.severity}`, `badge s${summary.severity}`],
    ["Categories", summary.categories.map(plain).join(", ") || "none"],
    ["Incident", summary.incident_id || "none", "id"],
    ["Policy", summary.policy_version, "id"],
    ["Detectors", states.join(", ") || "none"],
  ];
}

async function fail(response) {
  let text = `The gateway answered ${response.status}.`;
  try {
    text = (await response.json()).error.message;
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
  }
  show([["Not sent", text]]);
}

function onEvent(data) {
  if (data === "[DONE]") return;
  const chunk = JSON.parse(data);
  for (const choice of chunk.choices) {
    answer.textContent += choice.delta.content || "";
  }
  if (chunk.havengate) {
    show(verdictRows(chunk.havengate));
    const kept = chunk.havengate.decision === "allow" || chunk.havengate.decision === "guide";
    answer.classList.toggle("care", !kept);
  }
}

async function stream(text) {
  const turn = { model: form.dataset.model, stream: true, messages: [{ role: "user", content: text }] };
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(),
    body: JSON.stringify({ ...turn, metadata: { region: region.value } }),
  });
  if (!response.ok) return fail(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) onEvent(event.slice(6));
    }
  }
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = message.value.trim();
  if (!text) return;
  send.disabled = true;
  answer.textContent = "";
  answer.classList.remove("care");
  show([["Judging", "…"]]);
  try {
    await stream(text);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    show([["Not sent", "The gateway cannot be reached."]]);
  } finally {
    send.disabled = false;
  }
});

for (const example of document.querySelectorAll("button.example")) {
  example.addEventListener("click", () => {
    message.value = example.dataset.text;
    form.requestSubmit();
  });
}
