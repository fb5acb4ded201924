"use strict";
const HISTORY_SECONDS = 120, CHART_SECONDS = 0.9, RATE_SECONDS = 2, WINDOW_SECONDS = 5, SILENT_SECONDS = 2, BUSY = 0.9;
/* Events come every half second. After QUIET_TICKS without one the server is lost, and every RETRY_TICKS it is asked anew. */
const TICK_MS = 500, QUIET_TICKS = 4, RETRY_TICKS = 12, REFUSED_MS = 2000;
/* More workers than these are shown in smaller panels. */
const MANY = 8, MOST = 16;
const OUTCOMES = ["welcomed", "erred", "refused", "abandoned"];
const STOPPING = "The server is stopping: it ends what has begun and takes nothing new.";
const byId = (id) => document.getElementById(id);

/* The samples of the last seconds, the newest last. Of older ones only what is drawn is kept. */
let samples = [];
/* For each chart its points: uptime in seconds, and how much its count grew a second; for the clients, how many there were. */
const histories = new Map();
const cards = new Map();
/* The sample of the last points of the charts. */
let charted = null;
let source = null, quietTicks = 0, isLost = false, loss = "", paused = false, stopping = false, endExpected = false, lastEnd = null;

/* Text and numbers. */
const count = (number) => Math.round(number).toLocaleString("en");
const speed = (number) => number > 0 && number < 10 ? number.toFixed(1) : count(number);
const percent = (share) => (share * 100).toFixed(0) + " %";
const many = (number, noun) => count(number) + " " + noun + (number === 1 ? "" : "s");
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  return seconds < 1 ? (seconds * 1e3).toFixed(seconds < 0.1 ? 1 : 0) + " ms" : seconds.toFixed(2) + " s";
}
function age(seconds) {
  const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
  if (days) return days + " d " + hours + " h";
  return hours ? hours + " h " + minutes + " min" : minutes ? minutes + " min" : Math.floor(seconds) + " s";
}
function put(node, text) { if (node.textContent !== text) node.textContent = text; }
const show = (id, text) => put(byId(id), text);

/* What is counted, by the key of its chart. */
function countsOf(sample) {
  const counts = { visits: 0 };
  for (const outcome of OUTCOMES) counts.visits += counts[outcome] = sample.totals.visits[outcome];
  sample.counters.forEach((counter, place) => { counts["counter " + place] = counter.durations.count; });
  sample.workers.forEach((worker, place) => {
    counts["worker " + place] = OUTCOMES.reduce((sum, outcome) => sum + worker.visits[outcome], 0);
  });
  return counts;
}
const newest = () => samples[samples.length - 1];
/* The sample of so many seconds ago, or the oldest; the newest itself if it is the only one. */
function ago(seconds) {
  const now = newest().uptime_seconds;
  return samples.findLast((one) => now - one.uptime_seconds >= seconds - 0.1) || samples[0];
}
function growth(figure, seconds) {
  const now = newest(), before = ago(seconds), passed = now.uptime_seconds - before.uptime_seconds;
  return passed > 0 ? Math.max(0, figure(now) - figure(before)) / passed : 0;
}
const rate = (key) => growth((sample) => sample.counts[key] || 0, RATE_SECONDS);

/* The duration within which this share of the last seconds' calls ended, or null. */
function quantile(find, share) {
  const now = find(newest()), before = find(ago(WINDOW_SECONDS)), bounds = newest().bucket_bounds_seconds;
  const inside = now.buckets.map((number, place) => Math.max(0, number - before.buckets[place]));
  const rank = share * inside.reduce((sum, number) => sum + number, 0);
  let below = 0;
  for (let place = 0; place < inside.length; place++) {
    if (inside[place] > 0 && below + inside[place] >= rank) {
      const from = place ? bounds[place - 1] : 0, to = bounds[place] === null ? from : bounds[place];
      return from + (to - from) * (rank - below) / inside[place];
    }
    below += inside[place];
  }
  return null;
}

/* Charts. */
const peak = (key) => histories.get(key).reduce((top, point) => Math.max(top, point[1]), 0);
/* A line and the area below it. */
function trace(group, key, top) {
  const end = newest().uptime_seconds, left = ([at]) => (240 - (end - at) * 240 / HISTORY_SECONDS).toFixed(1);
  const points = histories.get(key), line = points.map((point) => left(point) + "," + (40 - point[1] / Math.max(top, 1) * 38).toFixed(1)).join(" ");
  group.querySelector("polyline").setAttribute("points", line);
  group.querySelector("polygon").setAttribute("points", line && left(points[0]) + ",40 " + line + " " + left(points[points.length - 1]) + ",40");
}
function draw(chart, key, what, unit = "a second", top = peak(key)) {
  trace(chart, key, top);
  chart.setAttribute("aria-label", what + " in the last two minutes, at most " + count(peak(key)) + " " + unit);
}
const caption = (key, unit) => "last 2 min, at most " + count(peak(key)) + " " + unit;

function card(parent, template, key) {
  let entry = cards.get(key);
  if (!entry) {
    const node = byId(template).content.cloneNode(true).firstElementChild, find = (selector) => node.querySelector(selector);
    entry = { node, title: find("h2, h3"), number: find(".number"), unit: find("small"), pill: find(".pill"), chart: find(".chart"), peak: find(".peak"), list: find("dl"), user: find(".user"), system: find(".system"), rows: new Map() };
    entry.title.id = key.replace(" ", "-") + "-title";
    node.setAttribute("aria-labelledby", entry.title.id);
    byId(parent).append(node);
    cards.set(key, entry);
  }
  return entry;
}
function row(entry, name, text, wide) {
  let value = entry.rows.get(name);
  if (!value) {
    const group = document.createElement("div"), term = document.createElement("dt");
    value = document.createElement("dd");
    term.textContent = name;
    group.append(term, value);
    if (wide) group.className = "wide";
    entry.list.append(group);
    entry.rows.set(name, value);
  }
  put(value, text);
}

function showVisits() {
  const all = newest().totals;
  show("visits-rate", speed(rate("visits")));
  draw(byId("visits-chart"), "visits", "visits");
  trace(byId("visits-chart").querySelector(".wrong"), "erred", peak("visits"));
  show("visits-peak", caption("visits", "visits/s"));
  show("in-flight", count(all.visits.in_flight));
  show("p50", time(quantile((sample) => sample.totals.durations, 0.5)));
  show("p99", time(quantile((sample) => sample.totals.durations, 0.99)));
  for (const outcome of OUTCOMES) {
    show(outcome + "-rate", speed(rate(outcome)));
    show(outcome, count(all.visits[outcome]));
    byId(outcome + "-rate").classList.toggle("wrong", (outcome === "erred" || outcome === "refused") && rate(outcome) > 0);
  }
  const causes = Object.entries(all.erred_by_cause).filter(([, number]) => number);
  show("causes", causes.length ? "erred since the start: " + causes.map(([cause, number]) => cause.replaceAll("_", " ") + " " + count(number)).join(", ") : "");
}
function showClients() {
  const all = newest().totals;
  show("clients", count(all.connections.open));
  draw(byId("clients-chart"), "clients", "open connections", "open");
  show("clients-peak", caption("clients", "open"));
  show("accepted", count(all.connections.accepted));
  show("evicted", count(all.connections.evicted));
  show("bad-requests", count(Object.values(all.bad_requests_by_reason).reduce((sum, number) => sum + number, 0)));
  show("uncounted", count(all.requests_uncounted));
  show("panics", count(all.panics));
  byId("panics").parentNode.hidden = !all.panics;
}
const storeFails = (sample) => Boolean(sample.bundled && sample.bundled.store_problem !== null);
function showCounter(counter, place) {
  const now = newest(), key = "counter " + place, entry = card("counters", "counter", key);
  const failing = counter.failing > 0 || counter.bundled && storeFails(now);
  const durations = (sample) => sample.counters[place].durations;
  entry.node.classList.toggle("bad", failing);
  entry.pill.className = "pill" + (failing ? " bad" : rate(key) > 0 ? " good" : "");
  put(entry.pill, failing ? "fails" : rate(key) > 0 ? "works" : "no calls now");
  put(entry.title, "Counter " + counter.counter + (counter.bundled ? " (bundled)" : ""));
  put(entry.number, speed(rate(key)));
  draw(entry.chart, key, "calls");
  put(entry.peak, caption(key, "calls/s"));
  row(entry, "circuit breaker", counter.failing > 0 ? "open at " + counter.failing + " of " + many(now.workers.length, "worker") : "closed: calls go through", true);
  row(entry, "round trip p50", time(quantile(durations, 0.5)));
  row(entry, "p99", time(quantile(durations, 0.99)));
  row(entry, "last call", time(counter.last_call_seconds));
  row(entry, "calls queued", count(counter.queued));
  row(entry, "connections", count(counter.connections));
  row(entry, "idle", count(counter.idle));
  row(entry, "opened", count(counter.dialed));
  row(entry, "reused", count(counter.reused));
  if (counter.bundled && now.bundled) {
    row(entry, "counted in all", count(now.bundled.counted));
    // What is well needs no room.
    if (now.bundled.commits_failed) row(entry, "commits that failed", count(now.bundled.commits_failed));
    if (storeFails(now)) row(entry, "store", "fails: " + now.bundled.store_problem, true);
    else if (entry.rows.has("store")) row(entry, "store", now.bundled.store, true);
  }
  row(entry, "addresses", counter.addresses.join(", ") || "none found", true);
}
const isSilent = (worker) => worker.silent_seconds !== null && worker.silent_seconds > SILENT_SECONDS;
function showWorker(worker, place, top) {
  const key = "worker " + place, entry = card("workers", "worker", key), silent = isSilent(worker);
  const used = (mode) => growth((sample) => sample.workers[place].cpu ? sample.workers[place].cpu[mode + "_seconds"] : 0, WINDOW_SECONDS);
  const sum = (name) => worker.upstreams.reduce((all, upstream) => all + upstream[name], 0);
  const [user, system] = [used("user"), used("system")], durations = (sample) => sample.workers[place].durations;
  entry.node.classList.toggle("bad", silent);
  entry.node.classList.toggle("busy", user + system >= BUSY);
  put(entry.title, newest().workers.length > MOST ? worker.worker + (worker.worker === worker.core ? "" : ", core " + worker.core) : "worker " + worker.worker + ", core " + worker.core);
  put(entry.number, silent ? "silent" : speed(rate(key)));
  put(entry.unit, silent ? worker.silent_seconds.toFixed(0) + " s" : newest().workers.length > MOST ? "/s" : "visits/s");
  draw(entry.chart, key, "visits", "a second", top);
  entry.user.setAttribute("width", Math.min(100, user * 100).toFixed(1));
  entry.system.setAttribute("x", Math.min(100, user * 100).toFixed(1));
  entry.system.setAttribute("width", Math.min(100, system * 100).toFixed(1));
  row(entry, "CPU", worker.cpu ? "user " + percent(user) + ", system " + percent(system) : "–", true);
  row(entry, "in flight", count(worker.visits.in_flight));
  row(entry, "clients", count(worker.connections.open));
  row(entry, "p50", time(quantile(durations, 0.5)));
  row(entry, "p99", time(quantile(durations, 0.99)));
  row(entry, "upstream", count(sum("connections")));
  row(entry, "queued", count(sum("queued")));
}

/* What the line at the top says: a class and a sentence. It is read out, so it has no numbers that change. */
function status(kind, text, isOld = false) {
  const line = byId("status");
  if (line.className !== kind) line.className = kind;
  put(line, text);
  document.title = (kind === "good" ? "" : text + " – ") + "tallyring";
  document.body.classList.toggle("old", samples.length > 0 && isOld);
}
function judge() {
  const now = newest(), wrong = [];
  const silent = now.workers.filter(isSilent).map((worker) => worker.worker), storeFailing = storeFails(now);
  const failing = now.counters.filter((counter) => counter.failing > 0 && !(counter.bundled && storeFailing));
  if (silent.length) wrong.push(silent.length === 1 ? "Worker " + silent[0] + " is silent." : "Workers " + silent.join(", ") + " are silent.");
  if (storeFailing) wrong.push("The store of the bundled counter fails: its visitors get the sorry page.");
  for (const counter of failing) {
    const all = counter.failing === now.workers.length;
    const where = now.counters.length > 1 ? "visits go to another counter of their route, if it has one." : (all ? "" : "their ") + "visitors get the sorry page.";
    wrong.push("The counter " + counter.counter + " fails" + (all ? ": " : " at some workers: ") + where);
  }
  const erred = growth((sample) => sample.counts.erred, WINDOW_SECONDS) > 0, welcomed = growth((sample) => sample.counts.welcomed, WINDOW_SECONDS) > 0;
  if (erred || welcomed) lastEnd = erred ? "erred" : "welcomed";
  if (!failing.length && !storeFailing && lastEnd === "erred") wrong.push(welcomed ? "Some visits are not registered." : "The last visits were not registered.");
  if (growth((sample) => sample.counts.refused, WINDOW_SECONDS) > 0) wrong.push("Overload: visits are refused.");
  if (stopping) return ["warn", STOPPING];
  if (wrong.length) return ["bad", wrong.join(" ")];
  if (!now.ready) return ["warn", now.state === "starting" ? "The server is starting." : "The server is not ready."];
  return ["good", now.counts.visits ? "All is well." : "Ready. No visit yet."];
}
function showAll() {
  const now = newest(), process = now.process;
  document.body.classList.toggle("many", now.workers.length > MANY);
  document.body.classList.toggle("most", now.workers.length > MOST);
  showVisits();
  showClients();
  now.counters.forEach(showCounter);
  // One scale for all, so that they can be compared.
  const top = now.workers.reduce((most, _, place) => Math.max(most, peak("worker " + place)), 0);
  now.workers.forEach((worker, place) => showWorker(worker, place, top));
  show("driver", "driver: " + [...new Set(now.workers.map((worker) => worker.driver ? worker.driver.description : "none yet"))].join(" and "));
  show("about", "tallyring " + now.version + ", up for " + age(now.uptime_seconds) + (process ? ", " + (process.resident_memory_bytes / 1048576).toFixed(1) + " MiB of memory, " + many(process.open_fds, "open file") : ""));
}
function forget() {
  samples = [];
  charted = lastEnd = null;
  histories.clear();
  cards.forEach((entry) => entry.node.remove());
  cards.clear();
}
function take(event) {
  quietTicks = 0;
  const sample = JSON.parse(event.data), before = newest();
  // Another process: its counts begin again. Its uptime may be above that of the one before already.
  const began = (one) => one.time_seconds - one.uptime_seconds;
  if (before && Math.abs(began(sample) - began(before)) > 0.1) forget();
  sample.counts = countsOf(sample);
  samples.push(sample);
  const now = sample.uptime_seconds;
  samples = samples.filter((one) => now - one.uptime_seconds <= WINDOW_SECONDS + 1);
  // Charts have a point a second.
  const passed = charted ? now - charted.uptime_seconds : Infinity;
  if (passed > CHART_SECONDS) {
    const remember = (key, value) => histories.set(key, [...(histories.get(key) || []).filter(([at]) => now - at <= HISTORY_SECONDS), [now, value]]);
    for (const [key, value] of Object.entries(sample.counts)) remember(key, charted ? Math.max(0, value - charted.counts[key]) / passed : 0);
    remember("clients", sample.totals.connections.open);
    charted = sample;
  }
  // A server that stops ends the stream.
  endExpected = stopping = sample.state === "stopping";
  status(...judge());
  if (!paused || !cards.size) showAll();
}

function lost() {
  // When it was lost is said once.
  if (!isLost) loss = stopping ? "The server has stopped. Trying again." : "Lost the server at " + new Date().toLocaleTimeString("en-GB") + ". Trying again.";
  isLost = true;
  status("bad", loss, true);
}
/* The stream was refused. */
async function refused() {
  const answers = await fetch("livez").then((response) => response.ok, () => false);
  if (!answers) return lost();
  isLost = false;
  status("warn", stopping ? STOPPING : "The server answers, but sends this page no figures: too many pages are open, or it is stopping. Trying again.", true);
}
function watch() {
  if (source) source.close();
  source = new EventSource("events");
  source.onmessage = (event) => { isLost = false; take(event); };
  // The server ends each stream after a while, and says so before; the browser connects again by itself.
  source.addEventListener("renew", () => { endExpected = true; });
  source.onerror = async (event) => {
    if (event.target !== source) return;
    const expected = endExpected;
    endExpected = false;
    if (source.readyState !== EventSource.CLOSED) return expected || lost();
    // The browser gives up after a refusal, so a new try is made here.
    await refused();
    setTimeout(watch, REFUSED_MS);
  };
}
byId("pause").onclick = () => {
  paused = !paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  if (!paused && samples.length) showAll();
};
setInterval(() => {
  quietTicks += 1;
  if (quietTicks < QUIET_TICKS) return;
  if (source.readyState !== EventSource.CLOSED) lost();
  if (quietTicks % RETRY_TICKS === 0 && source.readyState !== EventSource.CLOSED) watch();
}, TICK_MS);
watch();
