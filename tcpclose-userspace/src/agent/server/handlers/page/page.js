// Fetches /metrics every two seconds and shows it. /ports, once for each agent, has the name of the host.

import { Scrape, Span } from "./metrics.js";
import { PortTable } from "./ports.js";
import { age, between, count, rate, roughly, short, state } from "./words.js";

const EVERY = 2000;
/** An agent that takes longer to answer counts as gone, milliseconds. */
const TIMEOUT = 5000;
/** "The last minute", milliseconds. */
const MINUTE = 60_000;
/** The age from which numbers are marked as old, seconds. */
const OLD = 5;
/** A scrape that is so much late still counts as within the minute. */
const SLACK = 500;

/** The hooks of tcpclose_hook_info. */
const HOOKS = { state: "State backend", time_wait: "TIME-WAIT backend", owners: "Owners backend" };
/** The diagnoses of tcpclose_stuck_diagnosis_sockets. */
const DIAGNOSES = {
  not_accepted: "never accepted by the program",
  not_read: "the peer’s close not read yet",
  not_closed: "read to the end, never closed",
  unknown: "reason unknown",
};

/** The verdicts of tcpclose_stuck_verdict_sockets. */
const VERDICTS = {
  leak: "leak",
  stale_pool: "stale pool: the server has closed",
  slow_reader: "slow reader",
  hung: "hung: none is accepted, or read",
  proxy_half_close: "proxy that waits for the other end",
  one_off: "do not grow in number",
  undecided: "undecided yet",
};

const at = (id) => document.getElementById(id);
const table = new PortTable(at("port-table"), at("filter"), at("ports-empty"));

/** The start of the agent whose host is shown. */
let named;
/** The scrapes of the last minute, the oldest first. */
let scrapes = [];
/** The agent's clock at its last answer, whole seconds. */
let clock = 0;
/** The browser's wall clock at that moment. */
let asOf = "";

/** Sets a text only if it changes, which would disturb a screen reader or a selection. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function element(name, text, className) {
  const node = document.createElement(name);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

/** The state of the agent, `live`, `starting` or `gone`, and its text. */
function status(agent, words) {
  document.documentElement.dataset.agent = agent;
  say(at("status"), words);
}

async function ask() {
  let text;
  try {
    const answer = await fetch("metrics", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    text = await answer.text();
    if (!answer.ok) {
      status("gone", `The agent answers with an error: ${text.trim()}`);
      return;
    }
    clock = Date.parse(answer.headers.get("date")) / 1000;
  } catch {
    const last = asOf === "" ? "" : ` These numbers are as of ${asOf}.`;
    status("gone", `The agent does not answer.${last}`);
    say(at("updated"), "");
    document.title = "no agent · tcpclose";
    return;
  }
  const now = new Scrape(text, performance.now());
  // The counters of a restarted agent begin at 0.
  scrapes = scrapes.filter(({ at, began }) => began === now.began && now.at - at <= MINUTE + SLACK);
  scrapes.push(now);
  asOf = new Date().toLocaleTimeString();
  show();
  if (now.has("tcpclose_reconcile_last_success_timestamp_seconds")) nameHost(now.began);
}

/** Shows the name of the agent's host, once for each agent. */
async function nameHost(began) {
  if (named === began) return;
  named = began;
  try {
    const answer = await fetch("ports", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT) });
    const { host } = await answer.json();
    if (host) say(at("host"), host);
  } catch {
    // The address in its place stays, until the next scrape asks again.
    named = undefined;
  }
}

/** What rates and medians are over, as chosen. */
function span() {
  const now = scrapes.at(-1);
  if (document.querySelector("input[name=span]:checked").value === "start") {
    return new Span(undefined, now, clock - now.began);
  }
  return new Span(scrapes[0], now, (now.at - scrapes[0].at) / 1000);
}

function show() {
  const now = scrapes.at(-1);
  const over = span();
  if (now.has("tcpclose_reconcile_last_success_timestamp_seconds")) {
    const old = Math.max(...now.select("tcpclose_gauges_age_seconds").map(({ value }) => value), 0);
    status("live", old < OLD ? "Live" : `Live, numbers ${Math.round(old)} s old`);
  } else {
    status("starting", "The agent is starting: its first dump of the kernel’s sockets is not complete.");
  }
  say(at("updated"), `updated ${asOf}`);
  machine(over);
  facts(now);
  owners(now);
  reasons(now);
  verdicts(now);
  table.show(over);
  steps(over);
  const stuck = now.sum("tcpclose_stuck_sockets");
  const host = at("host").textContent;
  document.title = stuck > 0 ? `${count(stuck)} stuck · ${host}` : `${host} · tcpclose`;
  const version = now.select("tcpclose_build_info")[0]?.labels.version;
  say(at("version"), `tcpclose ${version ?? ""}`);
}

function machine(over) {
  const { now } = over;
  const counted = now.has("tcpclose_reconcile_last_success_timestamp_seconds");
  for (const box of document.querySelectorAll("#machine .box")) {
    const name = box.dataset.state;
    const [, number, note] = box.querySelectorAll("text");
    if (name === "established") {
      // The agent does not track sockets before they begin to close.
      fill(number, now.sum("tcpclose_transitions_total", { from: name }));
      early(note, over, name, "began to close");
      continue;
    }
    if (name === "closed") {
      fill(number, now.sum("tcpclose_closes_total"));
      say(note, "have ended");
      continue;
    }
    const sockets = counted ? now.sum("tcpclose_sockets", { state: name }) : undefined;
    fill(number, sockets);
    box.classList.toggle("none", !sockets);
    const stuck = name === "close_wait" ? now.sum("tcpclose_stuck_sockets") : 0;
    box.classList.toggle("stuck", stuck > 0);
    if (stuck > 0) say(note, `${count(stuck)} stuck`);
    else if (note) early(note, over, name, "");
  }
  for (const step of document.querySelectorAll("#machine .step")) {
    const [from, to] = step.dataset.step.split(" ");
    const risen = over.rate("tcpclose_transitions_total", { from, to });
    say(step.querySelector(".rate"), rate(risen));
    step.classList.toggle("moving", risen > 0);
    const median = step.querySelector(".median");
    if (median) say(median, roughly(over.median({ state: from })?.value));
  }
}

/** Fits a number into its box. */
function fill(node, n) {
  say(node, short(n));
  node.classList.toggle("long", n >= 1e5);
}

/** Transitions from a state to CLOSED that have no arrow: a RST, an abort, a timeout. */
function early(note, over, from, otherwise) {
  const ends = over.rate("tcpclose_transitions_total", { from, to: "closed" });
  say(note, ends > 0 ? `${rate(ends)} cut off` : otherwise);
}

function facts(now) {
  const stuck = now.sum("tcpclose_stuck_sockets");
  const possibly = now.sum("tcpclose_stuck_sockets_unproven");
  const counted = now.has("tcpclose_reconcile_last_success_timestamp_seconds");
  say(at("stuck"), counted ? count(stuck) : "–");
  at("stuck").parentElement.classList.toggle("some", stuck > 0);
  say(at("stuck-words"), `in CLOSE-WAIT for longer than ${age(now.sum("tcpclose_stuck_after_seconds"))}`);

  const oldest = now.select("tcpclose_oldest_socket_age_seconds", { state: "close_wait" });
  const backends = now.select("tcpclose_hook_info").map(({ labels: { hook, backend } }) => {
    const [degraded] = now.select("tcpclose_hook_degraded", { hook });
    return [HOOKS[hook] ?? hook, degraded?.value ? `${backend} (degraded)` : backend];
  });
  const lost = now.sum("tcpclose_events_lost_total");
  const limit = now.select("tcpclose_time_wait_limit_used_ratio", { netns_owner: "host" })[0]?.value;
  const rows = [
    ["Possibly stuck", count(possibly)],
    ["Oldest CLOSE-WAIT", oldest.length > 0 ? age(Math.max(...oldest.map(({ value }) => value))) : "–"],
    ["TIME-WAIT table", limit === undefined ? "–" : `${(limit * 100).toFixed(limit < 0.1 ? 1 : 0)} % full`],
    ["Events lost", count(lost), lost > 0],
    ...backends,
  ];
  const list = at("facts");
  while (list.children.length > rows.length * 2) list.lastElementChild.remove();
  rows.forEach(([term, value, bad], row) => {
    if (list.children.length <= row * 2) list.append(element("dt", term), element("dd", value));
    say(list.children[row * 2], term);
    say(list.children[row * 2 + 1], value);
    list.children[row * 2 + 1].classList.toggle("bad", bad === true);
  });
}

/** The owners of the stuck sockets. */
function owners(now) {
  ranking("owners", now.select("tcpclose_stuck_owner_sockets"), ({ comm, unit, container_id: container }) =>
    [comm, unit || container].filter(Boolean).join(" · "));
}

/** What their programs have not done. */
function reasons(now) {
  ranking("reasons", now.select("tcpclose_stuck_diagnosis_sockets"), ({ diagnosis: why }) => DIAGNOSES[why] ?? why);
}

/** What they are, by port. */
function verdicts(now) {
  ranking("verdicts", now.select("tcpclose_stuck_verdict_sockets"), ({ side, port, verdict }) =>
    `${VERDICTS[verdict] ?? verdict} · ${side} ${port}`);
}

/** Fills a list of numbers and names, the largest first; without any it is hidden. */
function ranking(id, samples, name) {
  const named = samples.filter(({ value }) => value > 0);
  named.sort((a, b) => b.value - a.value);
  at(id).hidden = named.length === 0;
  const lines = named.slice(0, 8).map(({ labels, value }) => [count(value), name(labels)]);
  const list = at(id).querySelector("ul");
  if (list.dataset.shown === JSON.stringify(lines)) return;
  list.dataset.shown = JSON.stringify(lines);
  list.replaceChildren(...lines.map(([number, name]) => {
    const line = document.createElement("li");
    line.append(element("b", number), element("span", name));
    return line;
  }));
}

/** The drawing as a table, with the steps that it has no arrow for. */
function steps(over) {
  const body = at("step-table").tBodies[0];
  const seen = over.now.select("tcpclose_transitions_total");
  while (body.rows.length > seen.length) body.deleteRow(-1);
  seen.forEach(({ labels: { from, to }, value }, at) => {
    const row = body.rows[at] ?? body.insertRow();
    if (row.cells.length === 0) {
      const head = element("th", "");
      head.scope = "row";
      row.append(head, element("td", ""));
      for (let n = 0; n < 3; n += 1) row.append(element("td", "", "number"));
    }
    const rises = rate(over.rate("tcpclose_transitions_total", { from, to }));
    const texts = [state(from), state(to), count(value), rises, between(over.median({ state: from }))];
    texts.forEach((text, cell) => say(row.cells[cell], text));
  });
}

/** One question after the other, and none while nobody looks. */
async function run() {
  for (;;) {
    if (!document.hidden) await ask();
    await new Promise((next) => setTimeout(next, EVERY));
  }
}

say(at("host"), location.host);
for (const choice of document.querySelectorAll("input[name=span]")) {
  choice.addEventListener("change", () => scrapes.length > 0 && show());
}
document.addEventListener("visibilitychange", () => !document.hidden && ask());
run();
