// What the pointer is at, what is searched for, and what a box reads and is read by.
const data = JSON.parse(document.getElementById("data").textContent);
const nodes = [...document.querySelectorAll(".node")];
const edges = [...document.querySelectorAll("path[data-edge]")];
const tip = document.getElementById("tip");
const field = document.querySelector("input");
const found = document.querySelector(".found");

function element(name, ...children) {
  const node = document.createElement(name);
  node.append(...children);
  return node;
}

function tell(event, [[, head], ...rows]) {
  tip.replaceChildren(element("b", head), element("dl", ...rows.flatMap(([name, value]) => [element("dt", name), element("dd", value)])));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 10 : event.clientX + 14;
  const top = event.clientY + 16 + height > innerHeight ? event.clientY - height - 10 : event.clientY + 16;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

let chosen = null;
function choose(number) {
  chosen = chosen === number ? null : number;
  nodes.forEach((node, index) => node.classList.toggle("chosen", index === chosen));
  edges.forEach((edge) => edge.classList.toggle("chosen", chosen !== null && edge.dataset.edge.split(" ").map(Number).includes(chosen)));
}

nodes.forEach((node, number) => {
  node.addEventListener("pointermove", (event) => tell(event, data.facts[number]));
  node.addEventListener("pointerleave", () => { tip.hidden = true; });
  node.addEventListener("click", () => choose(number));
});

let hits = [], turn = -1;
function search(text) {
  const wanted = text.trim().toLowerCase();
  hits = nodes.filter((node, number) => {
    const hit = !wanted || data.facts[number].some(([, value]) => value.toLowerCase().includes(wanted));
    node.classList.toggle("faint", !hit);
    return hit;
  });
  turn = -1;
  found.textContent = wanted ? `${hits.length} of ${nodes.length}` : "";
}

field.addEventListener("input", () => search(field.value));
field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && hits.length) {
    turn = (turn + (event.shiftKey ? hits.length - 1 : 1)) % hits.length;
    hits[turn].scrollIntoView({ block: "center", inline: "center" });
  }
  if (event.key === "Escape") { field.value = ""; search(""); field.blur(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target === field || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  field.focus();
});
document.documentElement.dataset.ready = "true";
