"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const every = (selector, root = document) => [...root.querySelectorAll(selector)];
  let D = JSON.parse(one("#data").textContent);
  let views = {};
  let lit = -1, opened = null, from = null;
  const table = { sort: "trial", down: false, page: 0 };
  const PAGE = 100;

  const unpacked = (values) => Array.isArray(values) ? values : values.at.map((n) => values.of[n]);
  const params = () => D.params.map((p) => ({ ...p, values: unpacked(p.values) }));
  let P = params();

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }

  const score = (v) => v === null ? "–" : v === 0 ? "0"
    : Math.abs(v) >= 0.01 && Math.abs(v) < 100 ? v.toFixed(3) : String(Number(v.toPrecision(4)));
  const task = (t) => D.tasks[D.trials.task[t]];
  const kind = (t) => D.kinds[D.trials.kind[t]];
  const best = new Set(D.chain);

  function lineage(t) {
    const chain = [];
    for (let at = t; at !== null && at >= 0; at = D.trials.parent[at]) chain.unshift(at);
    return chain;
  }

  // -- charts: rows come as columns; one trial is lit in all of them --

  function rows(columns) {
    const keys = Object.keys(columns);
    const length = keys.length ? columns[keys[0]].length : 0;
    return Array.from({ length }, (_, n) => Object.fromEntries(keys.map((key) => [key, columns[key][n]])));
  }

  async function draw() {
    const before = Object.values(views);
    views = {};
    for (const view of before) view.finalize();
    await Promise.all(every("[data-chart]").map(async (place) => {
      const name = place.dataset.chart, given = D.charts[name];
      if (!given) return;
      const spec = { ...given, data: given.data.map((d) => ({ ...d, values: rows(d.values.columns) })) };
      fit(spec, place.clientWidth);
      const tooltip = { disableDefaultStyle: true };
      const options = { mode: "vega", ast: true, actions: false, renderer: "svg", tooltip };
      const { view } = await vegaEmbed(place, spec, options);
      views[name] = view;
      view.addEventListener("click", (_, item) => known(item) && open(item.datum.t));
      view.addEventListener("mouseover", (_, item) => light(known(item) ? item.datum.t : -1));
      view.addEventListener("mouseout", () => light(-1));
    }));
  }
  function fit(spec, width) {
    const { columns, rest, closest, least, margin } = spec.usermeta;
    if (least) spec.width = Math.max(least, width - margin);
    if (!columns || columns < 2) return;
    const apart = Math.min(240, Math.max(closest, (width - rest) / (columns - 1)));
    spec.signals = spec.signals.map((one_) => one_.name === "apart" ? { ...one_, value: apart } : one_);
  }
  const known = (item) => item && item.datum && Number.isInteger(item.datum.t);

  function light(t) {
    if (t === lit) return;
    lit = t;
    const line = t < 0 ? [] : lineage(t);
    for (const view of Object.values(views)) view.signal("lit", t).signal("line", line).runAsync();
    for (const row of every("#trials tbody tr")) row.classList.toggle("lit", Number(row.dataset.row) === t);
  }

  // -- the tree by keyboard --

  function moved(t, key) {
    const column = D.ranks[D.trials.stage[t] - 1] || [], place = column.indexOf(t);
    if (key === "ArrowUp") return column[place - 1];
    if (key === "ArrowDown") return column[place + 1];
    if (key === "ArrowLeft") return D.trials.parent[t];
    return (D.ranks[D.trials.stage[t]] || []).find((child) => D.trials.parent[child] === t);
  }
  function speak(t) {
    const rank = (D.ranks[D.trials.stage[t] - 1] || []).indexOf(t) + 1;
    one("#spoken").textContent = `trial ${t}, stage ${D.trials.stage[t]} ${task(t)}, ${kind(t)}, score ` +
      `${score(D.trials.score[t])}, rank ${rank}${best.has(t) ? ", best chain" : ""}`;
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { if (opened === null) light(-1); close(); return; }
    if (!event.target.closest || !event.target.closest("#tree")) return;
    if (event.key === "Enter" && lit >= 0) { open(lit); event.preventDefault(); return; }
    if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const start = D.chain.length ? D.chain[0] : (D.ranks[0] || [0])[0];
    const to = lit < 0 ? start : moved(lit, event.key);
    if (to === undefined || to === null) return;
    light(to);
    speak(to);
  });

  // -- the panel of one trial --

  function terms(pairs) {
    const list = element("dl");
    for (const [key, value] of pairs) list.append(element("dt", {}, key), element("dd", {}, value));
    return list;
  }
  function link(t) {
    return element("button", { type: "button", class: "trial" + (best.has(t) ? " best" : ""), "data-trial": t }, String(t));
  }
  function open(t) {
    if (opened === null) from = document.activeElement;
    opened = t;
    fill(t);
    one("#panel").hidden = false;
    one("#panel").focus({ preventScroll: true });
    light(t);
  }
  function close() {
    if (opened === null) return;
    opened = null;
    one("#panel").hidden = true;
    if (from && from.focus) from.focus({ preventScroll: true });
  }
  function fill(t) {
    const T = D.trials, panel = one("#panel");
    const title = element("h2", { id: "panel-title" }, `Trial ${t}`);
    const shut = element("button", { type: "button", class: "close", "aria-label": "Close" }, "Close");
    shut.addEventListener("click", close);
    const line = element("p", { class: "small" });
    lineage(t).forEach((n, at) => line.append(...(at ? [" › "] : []), link(n)));
    const facts = [["state", kind(t)], ["score", score(T.score[t])], ["stage", `${T.stage[t]} ${task(t)}`]];
    if (T.seconds[t] !== null) facts.push(["took", `${T.seconds[t]} s`]);
    if (T.device[t] !== null) facts.push(["on", D.devices[T.device[t]]]);
    if (T.attempt[t] > 1) facts.push(["attempts", String(T.attempt[t])]);
    if (T.origin[t] !== null) facts.push(["suggested as", T.origin[t] + (T.source[t] === null ? "" : ` of ${T.source[t]}`)]);
    facts.push(["folder", T.folder[t] === null ? `${T.stage[t]}_${task(t)}/${t}` : T.folder[t]]);
    const set = P.filter((p) => p.values[t] !== null && p.values[t] !== undefined);
    panel.replaceChildren(title, shut, element("h3", {}, "Lineage"), line, terms(facts));
    if (set.length) panel.append(element("h3", {}, "Parameters"), terms(set.map((p) => [p.key, String(p.values[t])])));
    for (const [label, all] of [["Dev scores", D.evals], ["Test scores", D.tests]]) {
      const pairs = all[t].map((v, n) => [D.tasks[n], score(v)]).filter(([, text]) => text !== "–");
      if (pairs.length) panel.append(element("h3", {}, label), terms(pairs));
    }
    const reason = D.reasons[T.reason[t]];
    if (reason) panel.append(element("h3", {}, "Reason"), element("p", { class: "small" }, reason));
    if (D.tails[t]) panel.append(element("h3", {}, "End of its log"), element("pre", {}, D.tails[t]));
    panel.append(element("h3", {}, "In a terminal"), element("pre", {}, `autocl show ${t} SWEEP_FOLDER`));
  }

  // -- all trials --

  function columns() {
    const T = D.trials, name = (t) => [task(t), kind(t), T.origin[t] || "", D.reasons[T.reason[t]]].join(" ").toLowerCase();
    return {
      name,
      all: [
        { key: "trial", of: (t) => t }, { key: "stage", of: (t) => T.stage[t] },
        { key: "task", of: task, text: true }, { key: "state", of: kind, text: true },
        { key: "score", of: (t) => T.score[t], show: (v) => score(v) },
        { key: "parent", of: (t) => T.parent[t] }, { key: "seconds", of: (t) => T.seconds[t] },
        ...P.map((p) => ({ key: p.name, of: (t) => p.values[t] })),
      ],
    };
  }
  const initials = (key) => key.split("_").map((word) => word[0]).join("");
  function compared(a, sign, b) {
    if (a === null || a === undefined) return sign === "!=";
    const n = Number(b), numeric = typeof a === "number" && b !== "" && !Number.isNaN(n);
    const x = numeric ? a : String(a).toLowerCase(), y = numeric ? n : b;
    return { "<": x < y, ">": x > y, "<=": x <= y, ">=": x >= y, "=": x === y, "!=": x !== y }[sign];
  }
  function passes(text, known_) {
    const tests = text.toLowerCase().split(/\s+/).filter(Boolean).map((word) => {
      const found = word.match(/^([^<>=!]+)(<=|>=|!=|=|<|>)(.*)$/);
      if (!found) return (t) => known_.name(t).includes(word) || String(t) === word;
      const key = found[1], all = known_.all, named = (c) => c.key.toLowerCase();
      const column = all.find((c) => named(c) === key) || all.find((c) => named(c).startsWith(key)) ||
        all.find((c) => initials(named(c)) === key);
      return column ? (t) => compared(column.of(t), found[2], found[3]) : () => false;
    });
    return (t) => tests.every((test) => test(t));
  }
  function list() {
    const place = one("#trials");
    if (!place) return;
    const known_ = columns(), filter = one("#filter").value;
    const keep = passes(filter, known_), count = D.trials.stage.length;
    let numbers = [];
    for (let t = 0; t < count; t += 1) if (keep(t)) numbers.push(t);
    const by = known_.all.find((c) => c.key === table.sort) || known_.all[0], sign = table.down ? -1 : 1;
    const empty = (v) => v === null || v === undefined;
    numbers.sort((a, b) => {
      const x = by.of(a), y = by.of(b);
      if (empty(x) || empty(y)) return empty(x) - empty(y) || a - b;
      return (x < y ? -sign : x > y ? sign : 0) || a - b;
    });
    const pages = Math.max(1, Math.ceil(numbers.length / PAGE));
    table.page = Math.min(table.page, pages - 1);
    one("#shown").textContent = numbers.length === count ? `${count} trials` : `${numbers.length} of ${count} trials`;
    turn(pages);
    const head = element("tr");
    for (const column of known_.all) {
      const sort = column.key === table.sort ? { "aria-sort": table.down ? "descending" : "ascending" } : {};
      const arrow = column.key === table.sort ? (table.down ? " ↓" : " ↑") : "";
      const button = element("button", { type: "button" }, column.key + arrow);
      button.addEventListener("click", () => {
        table.down = column.key === table.sort ? !table.down : column.key === "score" && D.maximize;
        table.sort = column.key;
        list();
      });
      head.append(element("th", { scope: "col", ...(column.text ? { class: "left" } : {}), ...sort }, button));
    }
    const body = element("tbody");
    for (const t of numbers.slice(table.page * PAGE, (table.page + 1) * PAGE)) {
      const row = element("tr", { "data-row": t, class: (best.has(t) ? "best" : kind(t) === "done" ? "" : "off") + (t === lit ? " lit" : "") });
      for (const column of known_.all) {
        const value = column.of(t), text = empty(value) ? "" : column.show ? column.show(value) : String(value);
        const cell = element("td", column.text ? { class: "left" } : {});
        if (column.key === "trial" || (column.key === "parent" && text !== "")) cell.append(link(value));
        else cell.append(text);
        if (column.key === "score" && D.trials.step[t] >= 0) cell.prepend(element("span", { class: `dot s${D.trials.step[t]}` }));
        row.append(cell);
      }
      body.append(row);
    }
    place.replaceChildren(element("thead", {}, head), body);
  }
  function turn(pages) {
    const place = one("#pages");
    place.replaceChildren();
    if (pages < 2) return;
    const button = (label, step, off) => {
      const node = element("button", { type: "button", ...(off ? { disabled: "" } : {}) }, label);
      node.addEventListener("click", () => { table.page += step; list(); });
      return node;
    };
    place.append(button("Previous", -1, table.page === 0), ` page ${table.page + 1} of ${pages} `,
      button("Next", 1, table.page === pages - 1));
  }

  // -- clicks, copying, print --

  document.addEventListener("click", async (event) => {
    const named = event.target.closest("[data-trial]"), row = event.target.closest("#trials tbody tr");
    if (named) open(Number(named.dataset.trial));
    else if (row) open(Number(row.dataset.row));
    const copy = event.target.closest("[data-copy]");
    if (!copy) return;
    const text = copy.parentElement.querySelector("pre");
    try {
      await navigator.clipboard.writeText(text.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      copy.textContent = "Selected";
    }
  });
  document.addEventListener("input", (event) => {
    if (event.target.id === "filter") { table.page = 0; list(); }
  });
  document.addEventListener("mouseover", (event) => {
    const row = event.target.closest && event.target.closest("#trials tbody tr");
    if (row) light(Number(row.dataset.row));
  });
  addEventListener("beforeprint", () => every("details").forEach((node) => { node.open = true; }));
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });

  // -- live: the same page again, with what happened since --

  let size = document.documentElement.dataset.live;
  async function refresh() {
    const answer = await fetch("data.json" + location.search);
    if (!answer.ok) return;
    const fresh = await answer.json(), main = one("#main");
    const openDetails = every("details[open][id]").map((node) => node.id);
    const filter = one("#filter") ? one("#filter").value : "", typing = document.activeElement && document.activeElement.id;
    const top = scrollY;
    main.style.minHeight = `${main.offsetHeight}px`;
    size = String(fresh.size);
    D = fresh.data;
    P = params();
    best.clear();
    D.chain.forEach((t) => best.add(t));
    const parsed = new DOMParser().parseFromString(fresh.main, "text/html");
    main.replaceChildren(...parsed.body.childNodes);
    openDetails.forEach((id) => { const node = document.getElementById(id); if (node) node.open = true; });
    if (one("#filter")) one("#filter").value = filter;
    list();
    await draw();
    main.style.minHeight = "";
    scrollTo(0, top);
    if (typing && document.getElementById(typing)) document.getElementById(typing).focus({ preventScroll: true });
    if (opened !== null) fill(opened);
    document.documentElement.dataset.updates = Number(document.documentElement.dataset.updates || 0) + 1;
  }
  if ("live" in document.documentElement.dataset) {
    let busy = Promise.resolve();
    new EventSource("events" + location.search).onmessage = (event) => {
      busy = busy.then(() => event.data === size ? null : refresh()).catch(() => {});
    };
  }

  list();
  draw().then(() => { document.documentElement.dataset.drawn = ""; });
})();
