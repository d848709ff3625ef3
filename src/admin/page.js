// Draws the worker's metrics: fetches them once a second, and puts lines into the page.
"use strict";

const EVERY_MS = 1000;
// A worker under full load answers in milliseconds; one that hangs never does.
const PATIENCE_MS = 5000;
// How much is drawn: the axis begins with a little and grows.
const SPAN_MIN_MS = 30_000;
const SPAN_MAX_MS = 180_000;
// Rates and quantiles are of so many seconds: short enough to follow, long enough to be calm.
const WINDOW_MS = 5_000;
// Longer than a forward pass takes, and an acknowledgement of brokers that are well.
const STALLED_SECONDS = 60;
// Such a share of so many messages that wait in one partition is a matter of its keys.
const HOT_MESSAGES = 1000;
const HOT_SHARE = 0.9;
// Less is a few bad messages, which the dashboard shows.
const REJECTED_SHARE = 0.01;
const STAGES = ["tokenize", "wait", "embed", "deliver"];
const WIDTH = 400;
const HEIGHT = 130;
const TOP = 16;

// === the text format of Prometheus ===

function parse(text) {
  const series = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z0-9_]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, key, value] of (found[2] || "").matchAll(/([a-z_]+)="((?:[^"\\]|\\.)*)"/g)) labels[key] = value;
    series.push({ name: found[1], labels, value: Number(found[3].replace("Inf", "Infinity")) });
  }
  return series;
}

function all(series, name, labels = {}) {
  const holds = (s) => Object.entries(labels).every(([key, value]) => s.labels[key] === value);
  return series.filter((s) => s.name === name && holds(s));
}

function sum(series, name, labels) {
  return all(series, name, labels).reduce((total, s) => total + s.value, 0);
}

// The quantile of what was observed between two looks, linear within a bucket, as Prometheus does it. In the last bucket,
// which has no end, it is that bucket's beginning, and is over it.
function quantile(share, name, now, then) {
  const before = new Map(all(then, `${name}_bucket`).map((s) => [s.labels.le, s.value]));
  const buckets = all(now, `${name}_bucket`)
    .map((s) => ({ le: Number(s.labels.le.replace("Inf", "Infinity")), count: s.value - (before.get(s.labels.le) || 0) }))
    .sort((a, b) => a.le - b.le);
  const total = buckets.length ? buckets[buckets.length - 1].count : 0;
  if (total <= 0) return { value: null, isOver: false };
  const at = buckets.findIndex((b) => b.count >= share * total);
  const [low, below] = at > 0 ? [buckets[at - 1].le, buckets[at - 1].count] : [0, 0];
  if (buckets[at].le === Infinity) return { value: low, isOver: true };
  const within = (share * total - below) / (buckets[at].count - below);
  return { value: low + (buckets[at].le - low) * within, isOver: false };
}

// === what is drawn ===

const showCount = (n) => (n >= 10_000 ? `${(n / 1000).toFixed(0)} k` : n >= 100 || n === 0 ? n.toFixed(0) : n.toFixed(1));
const showPercent = (n) => `${(n * 100).toFixed(0)} %`;
function showSeconds(n) {
  if (n < 0.001) return `${(n * 1e6).toFixed(0)} µs`;
  if (n < 1) return `${(n * 1000).toFixed(n < 0.01 ? 1 : 0)} ms`;
  if (n < 600) return `${n.toFixed(1)} s`;
  return n < 36_000 ? `${(n / 60).toFixed(0)} min` : `${(n / 3600).toFixed(0)} h`;
}

// A caption that is longer than a batch may be is a batch of its own.
const OVERFULL = ", by captions longer than the budget";

const CHARTS = [
  { id: "throughput", title: "Captions a second", show: showCount, lines: [["throughput", ""]] },
  { id: "latency", title: "Latency, end to end", show: showSeconds, lines: [["p50", "50 %"], ["p99", "99 %"]] },
  { id: "fill", title: "Fill of a batch", show: showPercent, lines: [["fill", ""]], topMin: 1 },
  { id: "lag", title: "Messages that wait", show: showCount, lines: [["lag", ""]] },
];

// Whether a client is connected to no broker.
function isAway(series, client) {
  const up = all(series, "capvec_brokers_up", { client });
  return up.length > 0 && up[0].value === 0;
}

function hasModel(series) {
  return all(series, "capvec_model_info").length > 0;
}

// Mean seconds of each part of a caption's way, by its name. Before the worker is what the end to end has beyond the
// stages: the topic, and the fetch.
function waysOf(mean) {
  const stages = STAGES.map((stage) => [stage, mean("capvec_stage_seconds", { stage })]);
  const whole = mean("capvec_end_to_end_seconds", {});
  const inStages = stages.reduce((total, [, seconds]) => total + (seconds || 0), 0);
  return [["before the worker", whole === null ? null : Math.max(whole - inStages, 0)], ...stages];
}

function figures(now, then) {
  const seconds = (now.at - then.at) / 1000;
  const more = (name, labels) => sum(now.series, name, labels) - sum(then.series, name, labels);
  const ratio = (part, whole) => (whole > 0 ? part / whole : null);
  const tokens = ratio(more("capvec_batch_tokens_sum"), more("capvec_batch_tokens_count"));
  const fill = tokens === null ? null : ratio(tokens, sum(now.series, "capvec_batch_tokens_limit"));
  const p50 = quantile(0.5, "capvec_end_to_end_seconds", now.series, then.series);
  const p99 = quantile(0.99, "capvec_end_to_end_seconds", now.series, then.series);
  return {
    at: now.at,
    throughput: ratio(more("capvec_captions_embedded_total"), seconds),
    p50: p50.value,
    p99: p99.value,
    fill,
    // A worker that is cut off has lost its partitions, and without any there is no lag to tell of.
    lag: sum(now.series, "capvec_assigned_partitions") && !isAway(now.series, "consumer")
      ? sum(now.series, "capvec_lag_messages") : null,
    // What stands before and behind a figure.
    before: { p50: p50.isOver ? "over " : "", p99: p99.isOver ? "over " : "" },
    behind: { fill: fill > 1 ? OVERFULL : "" },
    ways: waysOf((name, labels) => ratio(more(`${name}_sum`, labels), more(`${name}_count`, labels))),
  };
}

// === drawing ===

function element(kind, classes, parent, text = "") {
  const svg = ["svg", "line", "polyline", "text"].includes(kind);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", kind) : document.createElement(kind);
  if (classes) made.setAttribute("class", classes);
  made.textContent = text;
  parent.append(made);
  return made;
}

function place(made, attributes) {
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function makeChart(chart) {
  const card = element("article", "card", document.getElementById("charts"));
  element("h2", "", card, chart.title);
  chart.now = element("p", "now", card);
  chart.svg = place(element("svg", "", card), { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, id: chart.id, role: "img" });
  for (const y of [TOP, (TOP + HEIGHT) / 2, HEIGHT - 1]) {
    place(element("line", "grid", chart.svg), { x1: 0, x2: WIDTH, y1: y, y2: y });
  }
  chart.scale = place(element("text", "", chart.svg), { x: 0, y: 11 });
}

// The least of 1, 2, 5, 10, ... that isn't below.
function ceiling(value) {
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * decade).find((bound) => bound >= value * 0.999);
}

function drawChart(chart, history) {
  const last = history[history.length - 1];
  const values = chart.lines.flatMap(([key]) => history.map((h) => h[key])).filter((v) => v !== null);
  const span = Math.max(SPAN_MIN_MS, last.at - history[0].at);
  const top = Math.max(chart.topMin || 0, ceiling(Math.max(...values, 1e-6)));
  chart.scale.textContent = chart.show(top);
  chart.now.replaceChildren();
  for (const old of chart.svg.querySelectorAll("polyline")) old.remove();
  const known = [];
  for (const [key, name] of chart.lines) {
    const figure = () => `${last.before[key] || ""}${chart.show(last[key])}${last.behind[key] || ""}`;
    const text = last[key] === null ? "–" : figure();
    element("span", key, chart.now, name ? `${text} for ${name}` : text);
    known.push(`${name} ${text}`.trim());
    // A line ends where nothing is known, and another begins after that.
    let points = [];
    const finish = () => {
      if (points.length > 1) place(element("polyline", key, chart.svg), { points: points.join(" ") });
      points = [];
    };
    for (const h of history) {
      if (h[key] === null) { finish(); continue; }
      const x = WIDTH * (1 - (last.at - h.at) / span);
      const y = HEIGHT - 1 - (HEIGHT - 1 - TOP) * Math.min(h[key] / top, 1);
      points.push(`${x.toFixed(1)},${y.toFixed(1)}`);
    }
    finish();
  }
  chart.svg.setAttribute("aria-label", `${chart.title}: ${known.join(", ")}`);
}

function drawWays(ways) {
  const list = document.getElementById("stages");
  const whole = ways.reduce((total, [, seconds]) => total + (seconds || 0), 0);
  list.replaceChildren();
  for (const [name, seconds] of ways) {
    const item = element("li", "", list);
    element("span", "", item, name);
    place(element("meter", "", item), { min: 0, max: 1, value: whole ? (seconds || 0) / whole : 0, "aria-label": name });
    element("span", "", item, seconds === null ? "–" : showSeconds(seconds));
  }
}

function describe(series) {
  const label = (name, key) => all(series, name).map((s) => s.labels[key]).join(", ");
  const about = [
    label("capvec_build_info", "version"), label("capvec_model_info", "model"),
    label("capvec_execution_provider_info", "running"),
    `${sum(series, "capvec_assigned_partitions")} partitions`,
  ];
  document.getElementById("about").textContent = about.filter(Boolean).join(" · ");
}

// Returns what is to be known before everything else, if anything is. A producer that has nothing to write needs no broker.
function troubleOf(series) {
  if (!hasModel(series)) return "";
  if (isAway(series, "consumer")) return "no broker answers: nothing comes in, and how much waits isn't known";
  const isWriting = sum(series, "capvec_outstanding_records") > 0;
  if (isWriting && isAway(series, "producer")) return "no broker answers the producer: nothing goes out";
  const stalled = sum(series, "capvec_stalled_seconds");
  return stalled > STALLED_SECONDS ? `nothing has come of the oldest message in the worker for ${showSeconds(stalled)}` : "";
}

// More workers don't help where one partition of several has what waits.
function hotOf(series) {
  const lags = all(series, "capvec_consumer_lag_messages");
  const total = sum(series, "capvec_consumer_lag_messages");
  const hot = lags.find((s) => s.value >= HOT_SHARE * total);
  if (lags.length < 2 || total < HOT_MESSAGES || !hot) return "";
  return `; ${showPercent(hot.value / total)} of those that wait are in partition ${hot.labels.partition}`;
}

function stateOf(series) {
  if (!hasModel(series)) {
    return isAway(series, "consumer") ? "waiting for the brokers" : "the model is being loaded";
  }
  const seconds = sum(series, "capvec_lag_seconds");
  if (seconds > 1) return `the oldest message that waits is ${showSeconds(seconds)} old${hotOf(series)}`;
  return sum(series, "capvec_assigned_partitions") ? "keeping up" : "no partitions: others have them all, or the group hasn't answered";
}

// Messages that become no vectors are no lag either.
function rejectedOf(series) {
  const share = sum(series, "capvec_rejected_share_ratio");
  return share >= REJECTED_SHARE ? `; ${showPercent(share)} of the last messages were rejected` : "";
}

function say(text, bad) {
  const state = document.getElementById("state");
  state.textContent = text;
  state.className = bad ? "bad" : "";
}

// === looking, again and again ===

const looks = [];
const history = [];

async function look() {
  const answer = await fetch("metrics", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error(`the worker answers ${answer.status}`);
  const now = { at: performance.now(), series: parse(await answer.text()) };
  // A worker that has started again counts from 0, and may have overtaken what it had.
  const started = (seen) => sum(seen.series, "capvec_start_time_seconds");
  if (looks.length && started(now) !== started(looks[looks.length - 1])) looks.length = 0;
  looks.push(now);
  while (looks.length > 2 && now.at - looks[1].at >= WINDOW_MS) looks.shift();
  describe(now.series);
  if (looks.length < 2) return;
  history.push(figures(now, looks[0]));
  while (now.at - history[0].at > SPAN_MAX_MS) history.shift();
  CHARTS.forEach((chart) => drawChart(chart, history));
  drawWays(history[history.length - 1].ways);
}

async function run() {
  try {
    await look();
    const { series } = looks[looks.length - 1];
    const trouble = troubleOf(series);
    say(trouble || stateOf(series) + rejectedOf(series), trouble !== "");
  } catch (error) {
    say(`no answer: ${error.message}`, true);
  }
  // After the answer, so that a slow worker is never asked twice at a time.
  setTimeout(run, EVERY_MS);
}

CHARTS.forEach(makeChart);
run();
