// Strategies per layer as a heat map, a row for each trait, and what each layer takes.
const RAMP = [0, 0.12, 0.3, 0.48, 0.66, 0.82, 0.93, 1];
const RECOMPUTE = ["none", "attention", "selective", "alternate", "full"];

function strength(trait, value) {
  if (trait === "recompute") return RECOMPUTE.indexOf(value) / (RECOMPUTE.length - 1);
  if (trait === "zero") return value / 3;
  return RAMP[Math.min(RAMP.length - 1, Math.round(Math.log2(parseInt(value))))];
}

function traitText(trait, value) {
  if (trait === "recompute") return value;
  return trait === "zero" ? `zero ${value}` : `${trait} ${value}`;
}

// What a layer takes at the most, of all plans, so that their bars are on one scale.
function most(names) {
  return Math.max(...data.plans.flatMap((plan) => plan.kinds.map((kind) => sum(names.map((name) => kind[name])))), 1e-30);
}

function heatmap(plan) {
  const label = 84, gap = 3, rowHeight = 22, barHeight = 44;
  let matching = () => true;
  const used = data.traits.map((name, index) => [name, index]).filter(([name, index]) =>
    name === "dp" || name === "tp" || plan.strategies.some((one) => strength(name, one.traits[index]) > 0));
  const kindOf = (layer) => plan.kinds[plan.layers[layer][2]];
  const figuresOf = [
    ["seconds", ["compute_s", "communication_s", "once_s"], ["compute", "communication", "update"], seconds],
    ["bytes", ["state_bytes", "saved_bytes"], ["state", "activations"], bytes],
  ];

  const drawing = chart((width) => {
    const each = (width - label) / plan.layers.length;
    const at = (layer) => label + layer * each;
    const parts = [], words = [];
    const stages = runs(plan.layers, ([stage]) => stage);
    // Of a run, in that stage in which most of it is.
    const middle = (run) => {
      const within = stages.map(({ first, last }) => [Math.max(first, run.first), Math.min(last, run.last)]);
      const [first, last] = within.reduce((most, one) => (one[1] - one[0] > most[1] - most[0] ? one : most));
      return (at(first) + at(last + 1)) / 2;
    };
    let y = 0;
    for (const run of stages) {
      const x = at(run.first), wide = at(run.last + 1) - x - gap;
      const stage = run.value[0];
      parts.push(drawn("rect", { x, y: y + 16, width: Math.max(wide, 1), height: 2, fill: colour("soft") }));
      if (wide > 14) parts.push(drawn("text", { x, y: y + 11 }, wide > 56 ? `stage ${stage}` : stage));
    }
    y += 24;
    for (const [name, index] of used) {
      parts.push(drawn("text", { x: label - 12, y: y + 15, "text-anchor": "end", class: "ink" }, name));
      const cells = plan.layers.map(([, strategy], layer) => [plan.strategies[strategy].traits[index], matching(layer)]);
      for (const run of runs(cells, (cell) => cell.join(" "))) {
        const [value, on] = run.value;
        const x = at(run.first), wide = Math.max(at(run.last + 1) - x - (run.last + 1 === cells.length ? gap : 0.5), 0.8);
        const share = strength(name, value);
        const fill = share ? `color-mix(in oklab, ${colour("degree")} ${Math.round(18 + share * 82)}%, ${colour("panel")})` : colour("well");
        parts.push(drawn("rect", { x, y, width: wide, height: rowHeight - 2, rx: 2, fill, opacity: on ? 1 : 0.18, "data-run": true }));
        const text = traitText(name, value);
        const short = String(value);
        const shown = text.length * 6.4 < wide ? text : short.length * 6.6 < wide ? short : null;
        if (shown) words.push(drawn("text", { x: middle(run), y: y + 14, "text-anchor": "middle", class: "on", opacity: on ? 1 : 0.3,
          style: { fill: share > 0.45 ? "light-dark(#fff, #10151b)" : "var(--ink)" } }, shown));
      }
      y += rowHeight;
    }
    for (const run of stages.slice(1)) {
      parts.push(drawn("rect", { x: at(run.first) - gap / 2, y: 20, width: Math.min(gap, each / 2) / 1.5, height: y - 20, fill: colour("panel") }));
    }
    parts.push(...words);
    for (const [unit, names, kinds, text] of figuresOf) {
      const scale = (barHeight - 8) / most(names);
      y += 10;
      parts.push(drawn("text", { x: label - 12, y: y + 14, "text-anchor": "end", class: "ink" }, unit === "bytes" ? "memory" : "time"));
      parts.push(drawn("text", { x: label - 12, y: y + 28, "text-anchor": "end" }, `≤ ${text(most(names))}`));
      parts.push(drawn("line", { class: "grid", x1: label, x2: width - gap, y1: y + barHeight - 0.5, y2: y + barHeight - 0.5 }));
      const cells = plan.layers.map(([stage, , kind], layer) => [stage, kind, matching(layer)]);
      const separate = each > 5;
      for (const run of separate ? cells.map((value, index) => ({ first: index, last: index, value })) : runs(cells, (cell) => cell.join(" "))) {
        const x = at(run.first), wide = Math.max(at(run.last + 1) - x - (separate ? Math.min(2, each / 5) : 0), 0.8);
        let top = y + barHeight;
        names.forEach((name, index) => {
          const high = plan.kinds[run.value[1]][name] * scale;
          top -= high;
          if (high > 0.2) parts.push(drawn("rect", { x, y: top, width: wide, height: high, fill: colour(kinds[index]), opacity: run.value[2] ? 1 : 0.18 }));
        });
      }
      y += barHeight;
    }
    const tellAt = (event) => {
      const layer = Math.floor((event.clientX - drawing.holder.getBoundingClientRect().left - label) / each);
      if (layer < 0 || layer >= plan.layers.length) return hush();
      const [stage, strategy] = plan.layers[layer], kind = kindOf(layer);
      tell(event, data.layers[layer], [
        ["stage", stage], ["strategy", plan.strategies[strategy].text], ["class", kind.cls],
        ["compute a step", seconds(kind.compute_s)], ["communication", seconds(kind.communication_s)],
        ["once a step", seconds(kind.once_s)], ["state", bytes(kind.state_bytes)], ["saved of a micro-batch", bytes(kind.saved_bytes)],
      ]);
    };
    parts.push(drawn("rect", { x: label, y: 0, width: Math.max(0, width - label), height: y, fill: "transparent", pointermove: tellAt, pointerleave: hush }));
    return { height: y + 4, parts };
  });

  return {
    node: drawing.holder,
    filter(text) {
      const wanted = text.trim().toLowerCase();
      matching = (layer) => !wanted || [data.layers[layer], kindOf(layer).cls, `stage ${plan.layers[layer][0]}`, plan.strategies[plan.layers[layer][1]].text]
        .some((one) => one.toLowerCase().includes(wanted));
      drawing.again();
      return plan.layers.filter((_, layer) => matching(layer)).length;
    },
  };
}

function layersSection() {
  const maps = data.plans.map(heatmap);
  const found = element("span", { class: "count", role: "status" });
  const filter = element("input", {
    type: "search", id: "filter-layers", placeholder: "layer, class, stage or strategy", "aria-label": "Layers to show", "data-filter": true,
    input: (event) => {
      const numbers = maps.map((map) => map.filter(event.target.value));
      found.textContent = event.target.value ? `${numbers[0]} of ${count(data.layers.length, "layer")}` : "";
    },
  });
  return [
    element("div", { class: "row" },
      legend([["compute", "compute"], ["communication", "communication"], ["update", "once a step"], ["state", "held all the time"], ["activations", "saved of a micro-batch"]]),
      element("div", { class: "row" }, found, filter)),
    ...data.plans.map((plan, index) => element("div", { class: "panel" }, heading(plan, index), maps[index].node)),
  ];
}
