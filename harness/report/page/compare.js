"use strict";
(() => {
  const runs = new Map();
  // Each run's figures lie in a script of their own, which a page opened from a folder may load as well.
  globalThis.harnessRun = (name, data) => runs.set(name, data);
  const loaded = (name) => new Promise((resolve, reject) => {
    if (runs.has(name)) return resolve(runs.get(name));
    const script = document.createElement("script");
    script.src = `data/${encodeURIComponent(name)}.js`;
    script.onload = () => resolve(runs.get(name));
    script.onerror = () => reject(new Error(`the figures of ${name} are not there`));
    document.head.append(script);
  });
  const [before, after, show, filter] = ["before", "after", "show", "filter"].map((id) => document.getElementById(id));
  const summary = document.getElementById("summary");
  const notes = document.getElementById("notes");
  const body = document.getElementById("compared").tBodies[0];
  const [MODEL, RECIPE, HARDWARE, SERVER, METRIC, PARAMETERS, UNIT, DIRECTION, DEFINITION, VALUE, LOW, HIGH, DOUBT] = [...Array(13).keys()];
  const key = (it) => JSON.stringify(it.slice(0, VALUE));
  // A single sample of a time or rate has no range that could tell it from noise; bytes hardly vary.
  const SIZES = new Set(["B", "GB"]);
  const shown = (value, unit) => {
    const [scale, name] = unit !== "B" ? [1, unit] : value >= 1e9 ? [1e9, "GB"] : value >= 1e6 ? [1e6, "MB"] : [1, "B"];
    return `${digits(value / scale)}${name === "1" || name === "fraction" ? "" : ` ${name}`}`;
  };
  const digits = (value) => Number.isFinite(value) ? String(Number(value.toPrecision(4))) : String(value);
  const differences = (one, other) => {
    const old = new Map(one.figures.map((it) => [key(it), it]));
    const rows = [];
    for (const now of other.figures) {
      const then = old.get(key(now));
      if (!then) continue;
      // What a run says of itself that it is too noisy to tell is not told by its range.
      const doubt = now[DOUBT] || then[DOUBT];
      const ranges = now[LOW] < now[HIGH] && then[LOW] < then[HIGH];
      const apart = (ranges || SIZES.has(now[UNIT])) && (now[LOW] > then[HIGH] || now[HIGH] < then[LOW]);
      const change = then[VALUE] ? now[VALUE] / then[VALUE] - 1 : now[VALUE] === then[VALUE] ? 0 : Infinity;
      const up = now[VALUE] > then[VALUE];
      let word = "";
      if (apart && !doubt && Math.abs(change) > 0.001 && now[DIRECTION] !== "none") word = up === (now[DIRECTION] === "higher") ? "better" : "worse";
      rows.push({ then, now, change, word, doubt });
    }
    const size = (it) => Math.abs(Math.log(1 + it.change)) || 0;
    const rank = { worse: 0, better: 1, "": 2 };
    return rows.sort((a, b) => rank[a.word] - rank[b.word] || size(b) - size(a));
  };
  const cell = (row, text, label, kind, head) => {
    const made = document.createElement(head ? "th" : "td");
    if (head) made.scope = "row";
    made.textContent = text;
    if (label) made.dataset.label = label;
    if (kind) made.className = kind;
    row.append(made);
    return made;
  };
  const draw = (one, other) => {
    const rows = differences(one, other);
    const count = (word) => rows.filter((it) => it.word === word).length;
    const [worse, better] = [count("worse"), count("better")];
    summary.className = `verdict ${worse ? "known" : rows.length ? "good" : "none"}`;
    summary.textContent = rows.length
      ? `${rows.length} figure${rows.length === 1 ? "" : "s"} of both runs: ${worse} clearly worse, ${better} clearly better, ${rows.length - worse - better} without a clear difference.`
      : "These two runs have no figure in common: they measured other models, recipes or hardware.";
    notes.replaceChildren();
    const note = (text) => { const line = document.createElement("li"); line.textContent = text; notes.append(line); };
    if (one.device !== other.device) note(`The devices differ: ${one.device || "none"}, then ${other.device || "none"}. Times of two machines say little of a package.`);
    for (const name of Object.keys({ ...one.packages, ...other.packages }).sort()) {
      const [old, now] = [one.packages[name] ?? "none", other.packages[name] ?? "none"];
      if (old !== now) note(`${name} ${old}, then ${now}`);
    }
    const alone = [one.figures.length - rows.length, other.figures.length - rows.length];
    if (alone[0] || alone[1]) note(`Only before: ${alone[0]} figures; only after: ${alone[1]}.`);
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    body.replaceChildren();
    document.getElementById("differences").hidden = !rows.length;
    for (const { then, now, change, word, doubt } of rows) {
      if (show.value === "clear" && !word) continue;
      const through = now[SERVER] ? ` through ${now[SERVER]}` : "";
      const name = `${now[METRIC]}${now[PARAMETERS] ? ` (${now[PARAMETERS]})` : ""} of ${now[MODEL]} ${now[RECIPE]} on ${now[HARDWARE]}${through}`;
      if (!words.every((it) => name.toLowerCase().includes(it))) continue;
      const row = document.createElement("tr");
      const range = (it) => it[LOW] === it[HIGH] ? "" : ` (${shown(it[LOW], it[UNIT])} to ${shown(it[HIGH], it[UNIT])})`;
      cell(row, name, "", "", true);
      cell(row, `${shown(then[VALUE], then[UNIT])}${range(then)}`, "before");
      cell(row, `${shown(now[VALUE], now[UNIT])}${range(now)}`, "after");
      cell(row, Number.isFinite(change) ? `${change >= 0 ? "+" : ""}${(100 * change).toFixed(Math.abs(change) < 0.1 ? 2 : 1)} %` : "from nothing", "change");
      cell(row, word || doubt || "not clear", "is it", word === "better" ? "pass" : word === "worse" ? "inconclusive" : "");
      body.append(row);
    }
    if (!body.rows.length && rows.length) {
      cell(body.appendChild(document.createElement("tr")), "Nothing to show with this choice.", "", "").colSpan = 5;
    }
  };
  const update = async () => {
    const names = [before.value, after.value];
    try {
      const [one, other] = [await loaded(names[0]), await loaded(names[1])];
      if (names[0] === before.value && names[1] === after.value) draw(one, other);
    } catch (error) {
      summary.className = "verdict bad";
      summary.textContent = error.message;
    }
  };
  // The choice is in the address, so that it can be sent to someone.
  const asked = new URLSearchParams(location.search);
  for (const [field, name] of [[before, "before"], [after, "after"], [show, "show"]]) {
    if (asked.has(name) && [...field.options].some((it) => it.value === asked.get(name))) field.value = asked.get(name);
    field.addEventListener("change", () => {
      const address = new URL(location.href);
      for (const [it, of] of [[before, "before"], [after, "after"], [show, "show"]]) address.searchParams.set(of, it.value);
      try { history.replaceState(null, "", address); } catch { /* a page of a folder keeps its address */ }
      update();
    });
  }
  filter.addEventListener("input", update);
  document.getElementById("choice").addEventListener("submit", (event) => event.preventDefault());
  update();
})();
