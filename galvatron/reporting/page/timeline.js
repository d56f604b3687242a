// What each rank does when, from the events that the cost model plays; all charts over time show the same stretch of it.
const COLOURS = { FORWARD: "forward", BACKWARD: "backward", BACKWARD_INPUT: "backward", BACKWARD_WEIGHT: "weight" };
const NAMES = { FORWARD: "forward", BACKWARD: "backward", BACKWARD_INPUT: "backward of inputs", BACKWARD_WEIGHT: "backward of weights" };
const LAYERED = ["forward", "backward", "weight", "communication", "host", "update"];

// The computations of a rank: when each begins and ends, which it is, and for which micro-batch.
function played(step, rank) {
  const own = step.ranks[rank], size = own.what.length;
  const begins = new Float64Array(size), ends = new Float64Array(size), batches = new Int32Array(size);
  const seen = {};
  let now = 0;
  for (let index = 0; index < size; index += 1) {
    begins[index] = (now + own.waits[index]) * step.tick_s;
    now += own.waits[index] + own.takes[index];
    ends[index] = now * step.tick_s;
    batches[index] = seen[own.what[index]] = (seen[own.what[index]] ?? -1) + 1;
  }
  return { what: own.what, begins, ends, batches, own };
}

// The first computation that ends behind a time.
function firstBehind(ends, time) {
  let low = 0, high = ends.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (ends[middle] > time) high = middle;
    else low = middle + 1;
  }
  return low;
}

const steps = data.plans.map((plan) => ({
  ...plan.step,
  ranks: plan.step.ranks.map((_, rank) => played(plan.step, rank)),
  // Of a computation: shares of its time by what is shown, and what runs beside it.
  shares: plan.step.computations.map(({ kind, spent }) => {
    const waiting = spent.transfer_s ?? 0;
    const body = sum(Object.entries(spent).filter(([name]) => !name.endsWith("_hidden_s")).map(([, value]) => value)) - waiting;
    const communication = ((spent.awaited_s ?? 0) + (spent.gather_s ?? 0) + (spent.reduce_s ?? 0)) / (body || 1);
    const hidden = (spent.gather_hidden_s ?? 0) + (spent.reduce_hidden_s ?? 0);
    return { colour: COLOURS[kind], waiting, communication, host: (spent.host_s ?? 0) / (body || 1), hidden };
  }),
}));
// Where a step is predicted to end, if that is not where its bars do.
const predictedEnds = data.plans.map((plan, number) =>
  steps[number].micro_batches === plan.micro_batches && Math.abs(steps[number].played_s / plan.step_s - 1) >= 1e-6 ? plan.step_s : null);
const view = { from: 0, to: Math.max(...steps.map((step) => step.played_s), ...predictedEnds), rank: data.plans.map((plan) => plan.limit.fullest_rank), charts: [] };
view.whole = view.to;

function look(from, to) {
  const least = view.whole / 1e5, wide = Math.min(view.whole, Math.max(least, to - from));
  view.from = Math.min(Math.max(0, from), view.whole - wide);
  view.to = view.from + wide;
  view.charts.forEach((again) => again());
}

function zoom(factor, at = (view.from + view.to) / 2) {
  look(at - (at - view.from) * factor, at + (view.to - at) * factor);
}

function timelineChart(step, plan, number) {
  const label = 64, high = step.ranks.length > 24 ? 12 : 26, beside = 4, pitch = high + beside + 4;
  let width = 0, selecting = null;
  const scale = (time) => label + ((time - view.from) / (view.to - view.from)) * (width - label);
  const inverse = (x) => view.from + ((x - label) / (width - label)) * (view.to - view.from);

  const drawing = chart((now) => {
    width = now;
    const parts = [], bottom = step.ranks.length * pitch;
    parts.push(...axis(scale, view.from, view.to, label, width - label, 0, bottom));
    step.ranks.forEach((rank, index) => {
      const y = index * pitch, paths = Object.fromEntries([...LAYERED, "hidden"].map((name) => [name, []]));
      const words = [];
      const box = (name, x0, x1, top, height) => {
        const a = Math.max(label, x0), b = Math.min(width, x1);
        if (b > a && height > 0) paths[name].push(`M${a.toFixed(2)} ${top.toFixed(2)}h${(b - a).toFixed(2)}v${height.toFixed(2)}h${(a - b).toFixed(2)}z`);
      };
      const first = firstBehind(rank.ends, view.from), last = firstBehind(rank.begins, view.to);
      if ((last - first) * 2 < width - label) exact(step, rank, first, last, scale, y, high, box, words);
      else inBins(step, rank, first, last, scale, label, width, y, high, box);
      const end = rank.ends.at(-1), once = rank.own.once;
      let behind = step.pipeline_s;
      for (const kind of ["epilogue", "sync", "update", "publish"]) {
        box(kind === "sync" || kind === "publish" ? "communication" : "update", scale(behind), scale(behind + once.exposed[kind]), y, high);
        behind += once.exposed[kind];
      }
      box("hidden", scale(end - once.hidden.sync), scale(end), y + high + 1, beside - 1);
      box("hidden", scale(rank.begins[0]), scale(rank.begins[0] + once.hidden.publish), y + high + 1, beside - 1);
      const chosen = view.rank[number] === index;
      parts.push(drawn("text", { x: label - 10, y: y + high / 2 + 4, "text-anchor": "end", class: chosen ? "ink" : "", "font-weight": chosen ? 650 : 400 }, step.ranks.length > 24 && index % 4 && !chosen ? "" : `rank ${index}`));
      parts.push(drawn("rect", { x: label, y, width: width - label, height: high, fill: colour("bubble") }));
      for (const [name, path] of Object.entries(paths)) {
        if (path.length) parts.push(drawn("path", { d: path.join(""), fill: colour(name === "hidden" ? "communication" : name), "data-kind": name }));
      }
      parts.push(...words);
    });
    if (predictedEnds[number] !== null && predictedEnds[number] >= view.from && predictedEnds[number] <= view.to) {
      const x = scale(predictedEnds[number]);
      parts.push(drawn("line", { class: "rule", x1: x, x2: x, y1: 0, y2: bottom, "data-kind": "predicted" }));
      parts.push(drawn("text", { x: x - 5, y: bottom - 12, "text-anchor": "end", class: "ink" }, "predicted end"));
    }
    if (selecting) parts.push(drawn("rect", { class: "select", x: Math.min(...selecting), width: Math.abs(selecting[1] - selecting[0]), y: 0, height: bottom }));
    return { height: bottom + 20, parts };
  }, { tabindex: 0, role: "group", "aria-label": "Stage by time. Arrow keys move, plus and minus zoom, 0 shows all, up and down choose a rank." });

  const { holder, again } = drawing;
  const place = (event) => event.clientX - holder.getBoundingClientRect().left;
  const rankAt = (event) => Math.floor((event.clientY - holder.getBoundingClientRect().top) / pitch);
  holder.addEventListener("pointerdown", (event) => {
    if (event.button || place(event) < label) return;
    selecting = [place(event), place(event)];
    holder.setPointerCapture(event.pointerId);
  });
  holder.addEventListener("pointermove", (event) => {
    if (selecting) {
      selecting[1] = Math.min(width, Math.max(label, place(event)));
      again();
    } else describe(event, step, rankAt(event), inverse(place(event)));
  });
  holder.addEventListener("pointerup", (event) => {
    const [from, to] = (selecting ?? [0, 0]).slice().sort((a, b) => a - b);
    selecting = null;
    if (to - from > 5) look(inverse(from), inverse(to));
    else if (step.ranks[rankAt(event)]) choose(number, rankAt(event));
  });
  holder.addEventListener("pointerleave", hush);
  holder.addEventListener("dblclick", () => look(0, view.whole));
  holder.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, inverse(place(event)));
  }, { passive: false });
  holder.addEventListener("keydown", (event) => {
    const wide = view.to - view.from;
    const keys = {
      ArrowLeft: () => look(view.from - wide / 5, view.to - wide / 5), ArrowRight: () => look(view.from + wide / 5, view.to + wide / 5),
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => look(0, view.whole), Escape: () => look(0, view.whole),
      ArrowUp: () => choose(number, Math.max(0, view.rank[number] - 1)), ArrowDown: () => choose(number, Math.min(step.ranks.length - 1, view.rank[number] + 1)),
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  view.charts.push(again);
  return holder;
}

function choose(number, rank) {
  view.rank[number] = rank;
  view.charts.forEach((again) => again());
}

// Each computation by itself: first what it waits for, then its body, of which communication has its share of the height.
function exact(step, rank, first, last, scale, y, high, box, words) {
  for (let index = first; index < last; index += 1) {
    const share = step.shares[rank.what[index]];
    const begin = scale(rank.begins[index]), computing = scale(rank.begins[index] + share.waiting), end = scale(rank.ends[index]);
    const line = end - begin > 4 ? 0.8 : 0;
    box("communication", begin, computing, y, high);
    const lower = high * share.communication, middle = high * share.host;
    box(share.colour, computing, end - line, y, high - lower - middle);
    box("host", computing, end - line, y + high - lower - middle, middle);
    box("communication", computing, end - line, y + high - lower, lower);
    box("hidden", computing, scale(Math.min(rank.ends[index], rank.begins[index] + share.waiting + share.hidden)), y + high + 1, 3);
    const text = String(rank.batches[index]);
    if (end - computing > text.length * 7 + 6 && computing >= 64 && high > 16) {
      const fill = share.colour === "forward" ? "#10233a" : "#fff";
      words.push(drawn("text", { x: (computing + end) / 2, y: y + (high - lower) / 2 + 4, "text-anchor": "middle", style: { fill, fontSize: "10.5px" } }, text));
    }
  }
}

// Too many to tell apart: what a stretch of some computations is spent on, one above the other.
function inBins(step, rank, first, last, scale, left, right, y, high, box) {
  const wide = Math.max(2, (8 * (right - left)) / (last - first)), bins = Math.ceil((right - left) / wide);
  const found = Object.fromEntries([...LAYERED, "hidden"].map((name) => [name, new Float32Array(bins)]));
  const add = (name, from, to, share) => {
    const a = Math.max(0, (from - left) / wide), b = Math.min(bins, (to - left) / wide);
    for (let bin = Math.floor(a); bin < b; bin += 1) found[name][bin] += share * (Math.min(b, bin + 1) - Math.max(a, bin));
  };
  for (let index = first; index < last; index += 1) {
    const share = step.shares[rank.what[index]];
    const begin = scale(rank.begins[index]), computing = scale(rank.begins[index] + share.waiting), end = scale(rank.ends[index]);
    add("communication", begin, computing, 1);
    add("communication", computing, end, share.communication);
    add("host", computing, end, share.host);
    add(share.colour, computing, end, 1 - share.communication - share.host);
    add("hidden", computing, scale(Math.min(rank.ends[index], rank.begins[index] + share.waiting + share.hidden)), 1);
  }
  for (let bin = 0; bin < bins; bin += 1) {
    let bottom = y + high;
    for (const name of ["communication", "host", "weight", "backward", "forward"]) {
      const part = Math.min(1, found[name][bin]) * high;
      bottom -= part;
      box(name, left + bin * wide, left + (bin + 1) * wide, bottom, part);
    }
    if (found.hidden[bin] > 0.02) box("hidden", left + bin * wide, left + (bin + found.hidden[bin]) * wide, y + high + 1, 3);
  }
}

function describe(event, step, number, time) {
  const rank = step.ranks[number];
  if (!rank || time < view.from) return hush();
  const index = firstBehind(rank.ends, time);
  if (index < rank.what.length && rank.begins[index] <= time) {
    const { stage, kind, spent } = step.computations[rank.what[index]];
    const rows = Object.entries(spent).map(([name, value]) => {
      const hidden = name.endsWith("_hidden_s");
      return [`${title(name.replace(hidden ? "_hidden_s" : "_s", ""))}${hidden ? ", hidden" : ""}`, seconds(value)];
    });
    tell(event, `${NAMES[kind]} of micro-batch ${rank.batches[index]}, stage ${stage}`,
      [["from", seconds(rank.begins[index])], ["takes", seconds(rank.ends[index] - rank.begins[index])], ...rows]);
  } else if (time > step.pipeline_s) {
    const { exposed, hidden } = rank.own.once;
    const rows = [...Object.entries(exposed), ...Object.entries(hidden).map(([name, value]) => [`${name}-hidden`, value])].filter(([, value]) => value);
    tell(event, `end of the step, rank ${number}`, rows.map(([name, value]) => [name.endsWith("-hidden") ? `${title(name.replace("-hidden", ""))}, hidden` : title(name), seconds(value)]));
  } else {
    const until = index < rank.what.length ? rank.begins[index] : step.pipeline_s, since = index ? rank.ends[index - 1] : 0;
    tell(event, `rank ${number} waits`, [["from", seconds(since)], ["for", seconds(until - since)]]);
  }
}

function timelineSection() {
  const buttons = [["−", () => zoom(2), "Zoom out (-)"], ["+", () => zoom(0.5), "Zoom in (+)"], ["Whole step", () => look(0, view.whole), "Show all (0)"]];
  return [
    element("div", { class: "row" },
      legend([["forward", "forward"], ["backward", "backward"], ...(data.plans.some((plan) => plan.schedule === "zbv") ? [["weight", "backward of weights"]] : []),
        ["communication", "communication that is waited for"], ["communication", "hidden beside computing", "thin"], ["update", "host, optimizer, end of the loss"], ["bubble", "waiting", "empty"]]),
      element("div", { class: "row" }, buttons.map(([text, click, name]) => element("button", { type: "button", click, title: name, "aria-label": name }, text)))),
    ...data.plans.map((plan, number) => element("div", { class: "panel" },
      heading(plan, number),
      timelineChart(steps[number], plan, number),
      element("p", { class: "note" }, remark(plan, steps[number])))),
    element("p", { class: "note" }, "Drag over a stretch of time to look at it, click a rank to see its memory below. The numbers are micro-batches."),
  ];
}

function remark(plan, step) {
  const few = step.micro_batches < plan.micro_batches ? `Drawn with ${step.micro_batches} of ${plan.micro_batches} micro-batches, whose order repeats itself. ` : "";
  if (few) return `${few}The whole step is predicted to take ${seconds(plan.step_s)}.`;
  const off = step.played_s / plan.step_s - 1;
  if (Math.abs(off) < 1e-6) return `The bars end after ${seconds(step.played_s)}, the predicted step.`;
  return `Computation by computation the step takes ${seconds(step.played_s)}. The prediction, ${seconds(plan.step_s)}, is that of the formula which the search adds up, for stages that take equally long (${percent(Math.abs(off))} apart).`;
}
