// The page from top to bottom: the answer, then why; and its keys.
function beside(render) {
  if (data.plans.length === 1) return [render(data.plans[0], 0)].flat();
  return data.plans.map((plan, index) => element("div", { class: "side" }, element("span", { class: "mark" }, marks[index]), element("div", { style: { flex: 1 } }, render(plan, index))));
}

function change(plan, index, value) {
  if (!index) return "";
  const share = value(plan) / value(data.plans[0]) - 1;
  return Math.abs(share) < 5e-4 ? "the same as A" : `${percent(Math.abs(share))} ${share > 0 ? "more" : "less"} than A`;
}

function value(text, small = "", over = false) {
  return element("div", { class: `value ${over ? "over" : ""}` }, text, small && element("small", {}, ` ${small}`));
}

function card(head, render) {
  return element("div", { class: "card" }, element("h3", {}, head), ...beside(render));
}

function why(text) {
  return text && element("div", { class: "why" }, text);
}

function answerSection() {
  const peak = (plan) => Math.max(...plan.peak_bytes);
  return [element("div", { class: `cards ${data.plans.length > 1 ? "two" : ""}` },
    card("A step is predicted to take", (plan, index) => [
      value(seconds(plan.step_s)), why(`${figures(plan.batch / plan.step_s, 3)} samples a second`), why(change(plan, index, (one) => one.step_s)),
    ]),
    card("Memory of the fullest device", (plan, index) => {
      const most = peak(plan), over = most > plan.budget_bytes;
      const spare = over ? `${bytes(most - plan.budget_bytes)} more than there is` : `fits, with ${bytes(plan.budget_bytes - most)} to spare`;
      const bar = stack([{ kind: over ? "over" : "state", value: most, text: "peak", rows: [["peak", bytes(most)], ["budget", bytes(plan.budget_bytes)]] }],
        Math.max(most, plan.budget_bytes), { height: 7, limit: plan.budget_bytes, over });
      return [value(bytes(most), `of ${bytes(plan.budget_bytes)}`, over), why(`rank ${plan.limit.fullest_rank}; ${spare}`), why(change(plan, index, peak)), element("div", { class: "meter" }, bar)];
    }),
    card("What limits it", (plan) => [
      value(plan.limit.memory ? `memory of rank ${plan.limit.fullest_rank}` : title(plan.limit.kind)), why(`${plan.limit.memory ? `${title(plan.limit.kind)} is ` : ""}${percent(plan.limit.share)} of the step on rank ${plan.limit.rank}, which waits least`),
    ]),
    card("How good it is", (plan) => {
      if (!plan.search) return [value("not searched"), why("no search has compared it with others")];
      const { gap, bound_s, complete } = plan.search;
      return [value(gap > 5e-4 ? `within ${percent(gap)}` : "the best", gap > 5e-4 ? "of the best" : "that was searched"),
        why(`no plan in the budget takes less than ${seconds(bound_s)}${complete ? "" : "; the search was stopped early"}`)];
    }))];
}

function facts(plan, index) {
  const parts = [`${count(plan.devices, "device")} of ${plan.cluster}`, count(plan.pipeline_degree, "pipeline rank"), count(plan.micro_batches, "micro-batch", "micro-batches"), plan.schedule, `global batch ${plan.batch}`,
    ...plan.ties.map(([name, kept]) => `${name} ${kept === "whole" ? kept : `as under ${kept}`}`)];
  return element("p", { class: "facts" }, `${marks[index] ? `${named(plan, index)}: ` : ""}${parts.join(" · ")}`);
}

const sections = [
  ["answer", "Answer", "", answerSection],
  ...(data.plans.length > 1 ? [["differences", "Differences", "What the two plans say differently.", differencesSection]] : []),
  ["layers", "Layers", "The strategy of each layer, in the order of the model, and what the layer takes on a device.", layersSection],
  ["time", "Time", "What each pipeline rank does when.", timelineSection],
  ["memory", "Memory", "What a device of each pipeline rank has in use.", memorySection],
  ["costs", "Costs", "What a step is made of on each stage. The parts of a bar add up to the step.", costsSection],
  ["decisions", "Decisions", `Which strategies were tried at each pipeline degree, which a rule cut, and why.${marks[1] ? " Those of A." : ""}`, decisionsSection],
  ["passes", "Passes", `What each pass changed in the program.${marks[1] ? " Under plan A." : ""}`, passesSection],
  ["code", "Code", `The module that each stage runs.${marks[1] ? " Under plan A." : ""}`, codeSection],
];

const main = document.querySelector("main");
main.append(element("header", {}, element("h1", {}, data.program), ...data.plans.map(facts)));
for (const [name, head, lead, make] of sections) {
  main.append(element("section", { id: name, class: name === "answer" ? "answer" : "", "aria-label": head },
    name === "answer" ? null : element("h2", {}, head), lead && element("p", { class: "lead" }, lead), ...make()));
  document.querySelector("nav").append(element("a", { href: `#${name}` }, head));
}

const links = [...document.querySelectorAll("nav a")];
const visible = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
  const current = sections.find(([name]) => visible.has(name))?.[0];
  links.forEach((link) => link.hash === `#${current}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current"));
}, { rootMargin: "-60px 0px -60% 0px" });
sections.forEach(([name]) => watch.observe(document.getElementById(name)));

const button = document.getElementById("theme");
function isDark() {
  return (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}
function labelled() {
  button.textContent = isDark() ? "Light" : "Dark";
}
function switched() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  labelled();
}
button.addEventListener("click", switched);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", labelled);
labelled();

const keys = document.getElementById("keys");
keys.append(element("h2", {}, "Keys"), element("dl", {}, [
  [`1 – ${sections.length}`, "go to a section"], ["/", "filter the nearest list"], ["t", "light or dark"], ["?", "these keys"],
  ["← →", "move in time"], ["+ −", "zoom"], ["0", "the whole step"], ["↑ ↓", "choose a rank"],
].map(([key, text]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, text)])));
keys.addEventListener("click", () => keys.close());
document.getElementById("help").addEventListener("click", () => keys.showModal());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const section = sections[Number(event.key) - 1];
  if (event.key === "t") switched();
  else if (event.key === "?") keys.open ? keys.close() : keys.showModal();
  else if (event.key === "/") nearest().focus();
  else if (section && !event.target.closest(".chart")) {
    location.hash = section[0];
    if (section[0] === "time") document.querySelector("#time .chart").focus({ preventScroll: true });
  } else return;
  event.preventDefault();
});

function nearest() {
  const middle = (node) => Math.abs(node.getBoundingClientRect().top - innerHeight / 3);
  return [...document.querySelectorAll("[data-filter]")].sort((a, b) => middle(a) - middle(b))[0];
}
document.documentElement.dataset.ready = "true";
