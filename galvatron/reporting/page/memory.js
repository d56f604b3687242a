// What ranks have in use when it is most, by kind, and over the step.
function memoryBars(plan) {
  const whole = reach * 1.001;
  const budget = plan.budget_bytes > whole ? `budget ${bytes(plan.budget_bytes)}, of which the width is ${percent(whole / plan.budget_bytes)}` : `budget ${bytes(plan.budget_bytes)}`;
  const rows = runs(plan.memory, (parts) => parts.map(Math.round).join(" ")).map(({ first, last, value }) => {
    const total = plan.peak_bytes[first], over = total > plan.budget_bytes;
    const parts = data.memory_kinds.map((kind, index) => ({
      kind, value: value[index], text: title(kind), rows: [[range("rank", first, last), bytes(value[index])], ["of the peak", percent(value[index] / total)]],
    }));
    return element("tr", {},
      element("td", { style: { whiteSpace: "nowrap" } }, range("rank", first, last)),
      element("td", { style: { width: "75%" } }, stack(parts, whole, { limit: plan.budget_bytes, over })),
      element("td", { class: `n ${over ? "over" : ""}` }, bytes(total)),
      element("td", { class: "n hide" }, percent(total / plan.budget_bytes)));
  });
  return element("table", {}, element("thead", {}, element("tr", {}, element("th"), element("th", {}, `peak of a device, ${budget}`), element("th", { class: "n" }, "in use"), element("th", { class: "n hide" }, "of budget"))),
    element("tbody", {}, rows));
}

function memoryOver(step, plan, number) {
  const label = 64, high = 150;
  const headline = element("h3");
  const drawing = chart((width) => {
    const rank = step.ranks[view.rank[number]], own = rank.own.memory;
    const state = sum(own.state), top = reach * 1.06;
    const scale = (time) => label + ((time - view.from) / (view.to - view.from)) * (width - label);
    const y = (size) => high - (size / top) * high;
    headline.textContent = `${marks[number]} Rank ${view.rank[number]} over the step: at most ${bytes(own.peak_bytes)} of ${bytes(plan.budget_bytes)}`.trim();
    const levels = new Float64Array(Math.ceil(width - label) + 1), totals = new Float64Array(levels.length);
    const put = (from, to, held, extra) => {
      const a = Math.max(0, Math.floor(scale(from) - label)), b = Math.min(levels.length - 1, Math.ceil(scale(to) - label) - 1);
      for (let x = a; x <= b; x += 1) {
        levels[x] = Math.max(levels[x], held);
        totals[x] = Math.max(totals[x], held + extra);
      }
    };
    const first = Math.max(0, firstBehind(rank.ends, view.from) - 1), last = Math.min(rank.what.length, firstBehind(rank.begins, view.to) + 1);
    for (let index = first; index < last; index += 1) {
      const held = own.levels[own.held[index]], computation = step.computations[rank.what[index]];
      put(rank.begins[index], rank.ends[index], held, own.extra_bytes);
      const after = held - (computation.releases ? own.kept[computation.stage] : 0);
      put(rank.ends[index], rank.begins[index + 1] ?? step.pipeline_s, Math.max(0, after), 0);
    }
    const { exposed } = rank.own.once;
    const updating = [step.pipeline_s + exposed.epilogue + exposed.sync, step.pipeline_s + exposed.epilogue + exposed.sync + exposed.update];
    if (exposed.update) put(...updating, 0, own.update_bytes);
    const area = (values, below, fill, kind) => {
      let path = "", x = 0;
      while (x < values.length) {
        let end = x;
        while (end < values.length && values[end] === values[x] && below[end] === below[x]) end += 1;
        const from = y(state + below[x]), to = y(state + values[x]);
        if (from - to > 0.05) path += `M${label + x} ${from.toFixed(1)}V${to.toFixed(1)}H${Math.min(width, label + end)}V${from.toFixed(1)}z`;
        x = end;
      }
      return drawn("path", { d: path, fill: colour(fill), "data-kind": kind });
    };
    const zeros = new Float64Array(levels.length);
    const budget = plan.budget_bytes <= top ? [y(plan.budget_bytes) + 4, "budget"] : [6, "budget ↑"];
    // Of labels that would stand on each other the first.
    const labels = [budget, [y(state) + 4, bytes(state)], [high, "0"]].filter(([at], index, all) => all.slice(0, index).every(([other]) => Math.abs(at - other) >= 13));
    const tellAt = (event) => {
      const x = Math.floor(event.clientX - drawing.holder.getBoundingClientRect().left - label);
      if (x < 0) return hush();
      tell(event, `rank ${view.rank[number]} at ${seconds(view.from + (x / (width - label)) * (view.to - view.from))}`,
        [["held all the time", bytes(state)], ["activations", bytes(levels[x])], ["beside that", bytes(totals[x] - levels[x])], ["together", bytes(state + totals[x])]]);
    };
    return { height: high + 20, parts: [
      ...axis(scale, view.from, view.to, label, width - label, 0, high),
      drawn("rect", { x: label, width: width - label, y: y(state), height: high - y(state), fill: colour("state") }),
      area(levels, zeros, "activations", "activations"),
      area(totals, levels, "working", "working"),
      plan.budget_bytes <= top && drawn("line", { class: "rule", x1: label, x2: width, y1: y(plan.budget_bytes), y2: y(plan.budget_bytes) }),
      ...labels.map(([at, text]) => drawn("text", { x: label - 10, y: at, "text-anchor": "end" }, text)),
      drawn("rect", { x: label, width: width - label, y: 0, height: high, fill: "transparent", pointermove: tellAt, pointerleave: hush }),
    ] };
  });
  view.charts.push(drawing.again);
  return element("div", { class: "panel" }, headline, drawing.holder);
}

function memorySection() {
  const used = data.memory_kinds.filter((kind, index) => data.plans.some((plan) => plan.memory.some((parts) => parts[index] > 0)));
  return [
    legend(used.map((kind) => [kind, title(kind)])),
    ...data.plans.map((plan, index) => element("div", { class: "panel" }, heading(plan, index), memoryBars(plan))),
    element("h3", {}, "Over time"),
    legend([["state", "held all the time"], ["activations", "activations of micro-batches in flight"], ["working", "working memory, messages, or the update"]]),
    ...data.plans.map((plan, number) => memoryOver(steps[number], plan, number)),
  ];
}

function costsSection() {
  return data.plans.map((plan, number) => {
    const whole = Math.max(...data.plans.map((one) => Math.max(...one.stages.map((stage) => sum(stage.times.map(([, exposed]) => exposed))))));
    const used = [...new Set(plan.stages.flatMap((stage) => stage.times.filter(([, exposed]) => exposed > 0).map(([kind]) => kind)))];
    const alike = runs(plan.stages, (stage) => stage.times.map(([, ...values]) => values.map((value) => value.toPrecision(4)).join(" ")).join(","));
    const rows = alike.map(({ first, last, value }) => {
      const total = sum(value.times.map(([, exposed]) => exposed));
      const parts = value.times.map(([kind, exposed, hidden]) => ({
        kind, value: exposed, text: title(kind), rows: [[range("stage", first, last), seconds(exposed)], ["of the step", percent(exposed / total)], ...(hidden ? [["hidden beside others", seconds(hidden)]] : [])],
      }));
      return element("tr", {}, element("td", { style: { whiteSpace: "nowrap" } }, range("stage", first, last)),
        element("td", { style: { width: "75%" } }, stack(parts, whole)), element("td", { class: "n" }, seconds(total)));
    });
    const classes = plan.classes.map((one) => element("tr", {}, element("td", {}, element("code", {}, one.cls)), element("td", { class: "n" }, one.layers),
      element("td", { class: "n" }, seconds(one.compute_s)), element("td", { class: "n" }, seconds(one.communication_s)), element("td", { class: "n" }, seconds(one.once_s))));
    return element("div", { class: "panel" }, heading(plan, number),
      legend(used.map((kind) => [kind, title(kind), kind === "bubble" ? "empty" : undefined])),
      element("table", {}, element("tbody", {}, rows)),
      element("h3", {}, "By layer class, seconds of all its layers in a step"),
      element("div", { class: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, element("th", {}, "class"), ...["layers", "compute", "communication", "once a step"].map((name) => element("th", { class: "n" }, name)))), element("tbody", {}, classes))));
  });
}
