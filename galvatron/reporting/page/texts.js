// What is read: the decision tree, what passes changed, the code, and in what two plans differ.
const HOW = [
  ["c", /(?:#|\/\/).*/y], ["s", /(?:[rbf]?"""[\s\S]*?"""|[rbf]?"(?:\\.|[^"\\\n])*"|[rbf]?'(?:\\.|[^'\\\n])*')/y],
  ["m", /%[\w.]+/y], ["d", /@[\w.]+/y],
  ["k", /\b(?:and|as|assert|class|def|del|elif|else|except|finally|for|from|global|if|import|in|is|lambda|not|or|pass|raise|return|self|try|while|with|yield|None|True|False|program|layer|graph|stage|state|input|output|plan|cluster|mesh|update|loop)\b/y],
  ["m", /\b\d[\w.]*/y], ["", /[A-Za-z_]\w*/y],
];

// Pieces of code as [class, text].
function pieces(text) {
  const found = [];
  let at = 0, plain = 0;
  while (at < text.length) {
    let hit = null;
    for (const [name, pattern] of HOW) {
      pattern.lastIndex = at;
      const match = pattern.exec(text);
      if (match) { hit = [name, match[0]]; break; }
    }
    if (!hit) { at += 1; continue; }
    if (hit[0]) {
      if (at > plain) found.push(["", text.slice(plain, at)]);
      found.push(hit);
      plain = at + hit[1].length;
    }
    at += hit[1].length;
  }
  if (plain < text.length) found.push(["", text.slice(plain)]);
  return found;
}

// Highlighted text, each line an element of its own.
function listing(text, kind = "code") {
  const lines = [[]];
  for (const [name, piece] of pieces(text)) {
    piece.split("\n").forEach((part, index) => {
      if (index) lines.push([]);
      if (part) lines.at(-1).push(name ? element("span", { class: name }, part) : part);
    });
  }
  return element("pre", { class: kind, tabindex: 0 }, lines.map((line, index) => element("span", { class: "l", "data-n": index + 1 }, ...line)));
}

function differenceListing(text) {
  const kinds = { "+": "added", "-": "gone" };
  const kindOf = (line) => kinds[line.trimStart()[0]] ?? (/^ {2,}\S/.test(line) ? "" : "place");
  return element("pre", { class: "diff", tabindex: 0 }, text.split("\n").map((line) => element("span", { class: `l ${kindOf(line)}` }, line)));
}

// What is inside is made when it is opened.
function folded(head, inside, attributes = {}) {
  const node = element("details", attributes, element("summary", {}, element("span", { class: "row" }, ...head)));
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) node.append(...[inside()].flat());
  });
  return node;
}

function decisionsSection() {
  const { branches, reasons, strategies, classes, rules, chosen } = data.decisions;
  const used = new Set(data.plans[0].strategies.map((one) => one.text));
  // A cut of a whole branch, before its leaves have grown, says in its reason how many.
  const single = (own) => own.filter(([rest]) => rest && rest !== "*").length;
  const moreOf = (branch) => sum(Object.values(branch.more_cuts));
  const all = { cut: sum(branches.map((one) => single(one.cuts) + moreOf(one))), left: sum(branches.map((one) => one.leaves.length + one.more_leaves)) };
  const most = Math.max(...branches.map((one) => single(one.cuts) + moreOf(one) + one.leaves.length + one.more_leaves), 1);
  const listed = branches.some((one) => one.more_leaves || moreOf(one));
  const tree = element("div", { class: "panel", id: "tree" });
  const found = element("span", { class: "count", role: "status" });

  const build = (text) => {
    const wanted = text.trim().toLowerCase();
    const holds = (one) => !wanted || one.toLowerCase().includes(wanted);
    let cut = 0, left = 0;
    const nodes = branches.map((branch) => {
      const leaves = branch.leaves.filter(([strategy]) => holds(strategies[strategy]));
      const cuts = branch.cuts.filter(([rest, rule, reason]) => holds(rest) || holds(rule) || holds(reasons[reason]));
      cut += single(cuts);
      left += leaves.length;
      if (!leaves.length && !cuts.length) return null;
      const byRule = grouped(cuts);
      const more = (rule) => (wanted ? 0 : branch.more_cuts[rule] ?? 0);
      const cutOf = (rule) => single(byRule.get(rule)) + more(rule);
      const leftOf = leaves.length + (wanted ? 0 : branch.more_leaves);
      const cutsOf = sum([...byRule.keys()].map(cutOf));
      const bar = stack([{ kind: "state", value: leftOf, text: "left", rows: [["strategies", leftOf]] },
        ...[...byRule.keys()].map((rule) => ({ kind: "reduce", value: cutOf(rule), text: rule, rows: [["cut", cutOf(rule)]] }))], most, { height: 9 });
      const head = [
        element("code", {}, branch.root === "*" ? "any" : branch.root),
        branch.root === chosen && element("span", { class: "tag chosen" }, "chosen"),
        element("span", { class: "hide", style: { width: "260px" } }, bar),
        element("span", { class: "count" }, leftOf ? `${leftOf.toLocaleString("en")} left${cutsOf ? `, ${cutsOf.toLocaleString("en")} cut` : ""}` : "cut"),
      ];
      return folded(head, () => [
        ...[...byRule].map(([rule, own]) => folded(
          [element("span", {}, rule), element("span", { class: "tag" }, rules[rule] ? (rules[rule][0] ? "sound" : "heuristic") : "sound"), element("span", { class: "count" }, cutOf(rule) ? `${cutOf(rule).toLocaleString("en")} cut` : reasons[own[0][2]])],
          () => [rules[rule] && element("p", { class: "reason" }, `${rules[rule][1]}.`), ...cutList(own)].filter(Boolean), { open: Boolean(wanted) })),
        leaves.length ? folded([element("span", {}, "left to the search"), element("span", { class: "count" }, count(leftOf, "strategy", "strategies"))],
          () => element("div", { class: "chips" }, leaves.map(([strategy, ...of]) => element("code", {
            class: used.has(strategies[strategy]) && branch.root === chosen ? "used" : "", title: of.length ? `for ${of.map((one) => classes[one]).join(", ")}` : "for every class",
          }, strategies[strategy]))), { open: Boolean(wanted) }) : null,
      ].filter(Boolean), { open: branch.root === chosen || Boolean(wanted) });
    });
    found.textContent = wanted ? `${left.toLocaleString("en")} left, ${cut.toLocaleString("en")} cut` : "";
    tree.replaceChildren(...nodes.filter(Boolean));
    tree.querySelectorAll("details[open]").forEach((node) => node.dispatchEvent(new Event("toggle")));
  };
  const cutList = (own) => [...grouped(own, ([, , reason]) => reason)].map(([reason, cuts]) => element("div", { class: "cuts" },
    element("p", { class: "reason" }, reasons[reason]),
    element("div", { class: "chips" }, cuts.filter(([rest]) => rest && rest !== "*").map(([rest]) => element("code", {}, rest)))));
  const filter = element("input", { type: "search", id: "filter-tree", placeholder: "strategy, rule or reason", "aria-label": "Decisions to show", "data-filter": true, input: (event) => build(event.target.value) });
  build("");
  return [
    element("div", { class: "row" }, element("span", { class: "count" }, `${all.left.toLocaleString("en")} strategies left at ${count(branches.length, "branch", "branches")}, ${all.cut.toLocaleString("en")} cut${listed ? "; some of each branch are listed" : ""}`), element("div", { class: "row" }, found, filter)),
    tree,
  ];
}

function grouped(items, key = ([, rule]) => rule) {
  const found = new Map();
  for (const item of items) found.set(key(item), [...(found.get(key(item)) ?? []), item]);
  return found;
}

function passesSection() {
  return [element("div", { class: "panel" }, data.code.passes.map((one) => {
    const head = [element("code", {}, one.name), element("span", { class: "count" }, one.gone || one.added ? `+${one.added.toLocaleString("en")} −${one.gone.toLocaleString("en")} lines` : "no change")];
    return folded(head, () => [differenceListing(one.lines), one.left_out ? element("p", { class: "note" }, `${count(one.left_out, "more line")} left out.`) : ""]);
  }))];
}

function codeSection() {
  const { modules, blocks } = data.code, names = Object.keys(modules);
  const holder = element("div", { id: "code" });
  const show = (name) => holder.replaceChildren(listing(modules[name].map((block) => blocks[block]).join("\n\n\n")));
  const pick = element("select", { "aria-label": "Stage", id: "pick-module", change: (event) => show(event.target.value) }, names.map((name) => element("option", { value: name }, name)));
  const outer = element("div", { class: "panel" }, element("div", { class: "row" }, pick, element("span", { class: "count" }, count(names.length, "module"))), holder);
  new IntersectionObserver((entries, observer) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    observer.disconnect();
    show(pick.value);
  }, { rootMargin: "600px" }).observe(outer);
  return [outer];
}

function differencesSection() {
  const rows = data.differences.map((row) => element("tr", {}, row.map((text) => element("td", {}, text))));
  return [element("div", { class: "panel long", tabindex: 0 }, element("table", {}, element("thead", {}, element("tr", {}, element("th"), ...data.plans.map((plan, index) => element("th", {}, named(plan, index))))), element("tbody", {}, rows)))];
}
