// What charts are made of: stacks, legends, axes, and how wide they are.
function colour(name) {
  return `var(--${name})`;
}

function legend(items) {
  return element("div", { class: "legend" }, items.map(([name, text, shape]) =>
    element("span", {}, element("i", { class: shape, style: { background: shape === "empty" ? "none" : colour(name) } }), text)));
}

// A bar of parts, [{kind, value, text, rows}], of which `whole` is all the width; with a mark at `limit`.
function stack(parts, whole, { height = 16, limit, over } = {}) {
  const shares = [];
  let from = 0;
  for (const part of parts.filter((one) => one.value > 0)) {
    shares.push(drawn("rect", {
      x: `${(from / whole) * 100}%`, width: `${(part.value / whole) * 100}%`, y: 0, height,
      fill: colour(part.kind), class: "edge", ...told(part.text, part.rows ?? []),
    }));
    from += part.value;
  }
  const mark = limit === undefined || limit > whole ? null : drawn("line", {
    x1: `${(limit / whole) * 100}%`, x2: `${(limit / whole) * 100}%`, y1: -3, y2: height + 3, class: "rule",
    style: { stroke: over ? colour("over") : "" },
  });
  return drawn("svg", { height, role: "img", "aria-label": parts.map((one) => one.text).join(", ") }, ...shares, mark);
}

// Round numbers between two, as many as fit.
function ticks(from, to, most) {
  const rough = (to - from) / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const unit = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let at = Math.ceil(from / unit - 1e-9) * unit; at <= to + unit * 1e-9; at += unit) found.push(Math.abs(at) < unit * 1e-9 ? 0 : at);
  return found;
}

// A chart that is drawn again when its width changes: `draw(width)` gives the parts of an svg and its height. Not within
// the notification, which would be about what it changes itself.
function chart(draw, attributes = {}) {
  const holder = element("div", { class: "chart", ...attributes });
  let drawnAt = 0;
  const again = () => {
    if (!holder.clientWidth) return;
    drawnAt = holder.clientWidth;
    const { height, parts } = draw(drawnAt);
    holder.replaceChildren(drawn("svg", { height, width: drawnAt, viewBox: `0 0 ${drawnAt} ${height}` }, ...parts));
  };
  new ResizeObserver(() => requestAnimationFrame(() => holder.clientWidth !== drawnAt && again())).observe(holder);
  return { holder, again };
}

function axis(scale, from, to, left, width, top, bottom) {
  return ticks(from, to, width / 110).map((at) => [
    drawn("line", { class: "grid", x1: scale(at), x2: scale(at), y1: top, y2: bottom }),
    drawn("text", { x: scale(at), y: bottom + 14, "text-anchor": scale(at) > left + width - 20 ? "end" : at === from ? "start" : "middle" }, seconds(at)),
  ]).flat();
}
