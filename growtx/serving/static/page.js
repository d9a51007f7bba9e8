"use strict";

// Okabe-Ito: distinguishable with any kind of colour vision.
const COLOURS = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [213, 94, 0], [86, 180, 233]];
const $ = (id) => document.getElementById(id);
let model = null;
let running = null;

const colour = (index) => `rgb(${COLOURS[index % COLOURS.length].join(" ")})`;

function mixed(shares) {
  const rgb = [0, 1, 2].map((part) =>
    Math.round(shares.reduce((sum, share, index) => sum + share * COLOURS[index % COLOURS.length][part], 0)));
  return `rgb(${rgb.join(" ")} / 0.30)`;
}

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

async function problemOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}`;
  }
}

function fill(select, values, names = values) {
  select.replaceChildren(...values.map((value, index) => new Option(names[index], value)));
}

async function loadModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (response.status === 401) {
    $("key-field").hidden = false;
    $("about").textContent = "This server requires an API key.";
    return;
  }
  if (!response.ok) throw new Error(await problemOf(response));
  model = (await response.json()).data[0];
  const about = model.growtx;
  const members = about.members.length > 1 ? `an ensemble of ${about.members.join(", ")}` : "one model";
  $("about").textContent = `${model.id}: ${members}, context of ${about.context_length} tokens, vocabulary of ${about.vocab_size}`;
  fill($("rule"), about.rules);
  fill($("depth"), ["", ...about.depths], ["last stage", ...about.depths.map((depth) => `${depth} blocks`)]);
  $("rule-field").hidden = about.rules.length < 2;
  $("depth-field").hidden = about.depths.length < 2;
  const most = model.max_model_len, tokens = $("max-tokens");
  tokens.max = most;
  if (Number(tokens.value) > most) tokens.value = most;
  showMembers(about.members);
}

function showMembers(members) {
  const isEnsemble = members.length > 1;
  for (const id of ["legend", "strip", "note", "weights"]) $(id).hidden = !isEnsemble;
  $("legend").replaceChildren(...members.map((name, index) => {
    const item = document.createElement("span"), swatch = document.createElement("i");
    swatch.style.background = colour(index);
    item.append(swatch, name);
    return item;
  }));
  $("weight-inputs").replaceChildren(...members.map((name) => {
    const label = document.createElement("label"), input = document.createElement("input");
    Object.assign(input, { type: "number", step: "0.1", value: (1 / members.length).toFixed(2), className: "weight" });
    label.append(`${name} `, input);
    return label;
  }));
}

function requestBody() {
  const growtx = { attribution: model.growtx.members.length > 1 };
  if (model.growtx.rules.length) growtx.rule = $("rule").value;
  if ($("depth").value) growtx.depth = Number($("depth").value);
  if ($("own-weights").checked) growtx.weights = [...document.querySelectorAll(".weight")].map((input) => Number(input.value));
  const body = {
    model: model.id,
    prompt: $("prompt").value,
    temperature: Number($("temperature").value),
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    growtx,
  };
  // An empty field is left to the server; as a number it would be 0.
  if ($("max-tokens").value) body.max_tokens = Number($("max-tokens").value);
  if ($("seed").value) body.seed = Number($("seed").value);
  return body;
}

function add(choice) {
  const about = choice.growtx;
  const element = document.createElement("span");
  element.textContent = choice.text;
  $("text").append(element);
  if (!about || !about.tokens.length) return;
  element.className = "token";
  // Several tokens may arrive together; they are tinted by their mean.
  const mean = about.shares[0].map((_, index) => about.shares.reduce((sum, share) => sum + share[index], 0) / about.shares.length);
  element.style.background = mixed(mean);
  element.title = model.growtx.members.map((name, index) => `${name}: ${(100 * mean[index]).toFixed(0)} %`).join("\n");
  for (const weights of about.weights) {
    const column = document.createElement("div");
    const total = weights.reduce((sum, weight) => sum + Math.max(weight, 0), 0) || 1;
    column.replaceChildren(...weights.map((weight, index) => {
      const bar = document.createElement("div");
      bar.style.cssText = `flex: ${Math.max(weight, 0) / total} 0 0; background: ${colour(index)}`;
      return bar;
    }));
    $("strip").append(column);
  }
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function continueText() {
  running = new AbortController();
  const prompt = document.createElement("span");
  prompt.className = "prompt";
  prompt.textContent = $("prompt").value;
  $("text").replaceChildren(prompt);
  $("strip").replaceChildren();
  const start = performance.now();
  let first = null, count = 0;
  const response = await fetch("v1/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(requestBody()), signal: running.signal,
  });
  if (!response.ok) throw new Error(await problemOf(response));
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    first ??= performance.now() - start;
    event.choices.forEach(add);
    count = event.usage?.completion_tokens ?? count;
    const seconds = (performance.now() - start) / 1000;
    say(`${count} tokens, ${(count / seconds).toFixed(1)} per second, first after ${first.toFixed(0)} ms`);
  }
}

$("temperature").addEventListener("input", () => { $("temperature-value").textContent = Number($("temperature").value).toFixed(1); });
$("stop").addEventListener("click", () => running?.abort());
$("key").addEventListener("change", () => loadModel().catch((error) => say(error.message, true)));
$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("go").disabled = true;
  $("stop").disabled = false;
  say("");
  try {
    if (!model) await loadModel();
    if (model) await continueText();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    $("go").disabled = false;
    $("stop").disabled = true;
  }
});
loadModel().catch((error) => say(error.message, true));
