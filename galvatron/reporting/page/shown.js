// The figures, and how they are written and put into the page: as text always, so that no name can be more than that.
const data = JSON.parse(document.getElementById("data").textContent);
const marks = data.plans.length > 1 ? ["A", "B"] : [""];

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

function figures(number, digits) {
  return String(Number(number.toPrecision(digits)));
}

function seconds(value) {
  const size = Math.abs(value);
  if (!size) return "0 s";
  if (size >= 1) return `${figures(value, 3)} s`;
  if (size >= 1e-3) return `${figures(value * 1e3, 3)} ms`;
  return `${figures(value * 1e6, 3)} µs`;
}

function bytes(value) {
  for (const [power, unit] of [[40, "TiB"], [30, "GiB"], [20, "MiB"], [10, "KiB"]]) {
    if (Math.abs(value) >= 2 ** power) return `${figures(value / 2 ** power, 4)} ${unit}`;
  }
  return `${Math.round(value)} B`;
}

function percent(share) {
  return `${share && Math.abs(share) < 0.0995 ? figures(share * 100, 2) : Math.round(share * 100)} %`;
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// What a plan is called where there are two.
function named(plan, index) {
  return [marks[index], plan.name].filter(Boolean).join("  ");
}

function heading(plan, index) {
  return marks[index] && element("h3", {}, named(plan, index));
}

function title(kind) {
  return data.titles[kind] ?? kind;
}

// What an axis of bytes ends at: the most that a plan uses, or its budget where that does not make all else too small to
// be seen; the same for all plans.
const reach = Math.max(...data.plans.map((plan) => {
  const most = Math.max(...plan.peak_bytes);
  return plan.budget_bytes <= 4 * most ? Math.max(most, plan.budget_bytes) : most;
}));

function sum(numbers) {
  return numbers.reduce((total, number) => total + number, 0);
}

// Neighbours that are equal, as {first, last, value}.
function runs(values, key = (value) => value) {
  const found = [];
  values.forEach((value, index) => {
    const before = found.at(-1);
    if (before && before.key === key(value)) before.last = index;
    else found.push({ first: index, last: index, value, key: key(value) });
  });
  return found;
}

function range(word, first, last) {
  return first === last ? `${word} ${first}` : `${word}s ${first}–${last}`;
}

const tip = document.getElementById("tip");

// What the pointer is at: a line, and names with figures below it.
function tell(event, head, rows = []) {
  const list = rows.map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]);
  tip.replaceChildren(element("b", {}, head), element("dl", {}, ...list));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
  const above = event.clientY + 16 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, above)}px`;
}

function hush() {
  tip.hidden = true;
}

function told(head, rows = []) {
  return { pointermove: (event) => tell(event, head, rows), pointerleave: hush };
}
