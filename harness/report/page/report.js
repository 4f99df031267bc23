"use strict";
(() => {
  // Numbers first, by value; a text that begins with a number ("0.60s (1.80x slowdown)") sorts by it.
  const scale = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };
  const number = (text) => {
    const found = /^[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?/i.exec(text);
    if (!found) return NaN;
    const unit = /^\s*(kB|MB|GB|B)\b/.exec(text.slice(found[0].length));
    return parseFloat(found[0].replaceAll(",", "")) * (unit ? scale[unit[1]] : 1);
  };
  const compare = (one, other) => {
    const [a, b] = [number(one), number(other)];
    if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
    return Number.isNaN(a) ? one.localeCompare(other) : a - b;
  };
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const body = head.closest("table").tBodies[0];
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const text = (row) => row.cells[head.cellIndex].textContent.trim();
      const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * compare(text(a), text(b)));
      body.append(...rows);
    });
  }
  const filter = document.getElementById("filter");
  const subject = document.getElementById("subject");
  const count = document.getElementById("count");
  const rows = [...document.querySelectorAll("table.data tbody tr")].map((row) => [row, row.textContent.toLowerCase()]);
  const apply = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    for (const section of document.querySelectorAll("section.subject")) {
      section.hidden = subject.value !== "" && section.dataset.subject !== subject.value;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    draw();
  };
  filter.addEventListener("input", apply);
  subject.addEventListener("change", apply);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  // A plot is drawn once its place is visible, so that it knows how wide that is.
  const draw = () => {
    for (const place of document.querySelectorAll(".vega:not([data-drawn])")) {
      if (!place.offsetParent) continue;
      place.dataset.drawn = "";
      const spec = JSON.parse(place.querySelector("script").textContent);
      vegaEmbed(place, spec, { renderer: "svg", actions: false }).then(
        () => { place.dataset.drawn = "done"; },
        (error) => { place.textContent = `This plot could not be drawn: ${error.message}`; console.error(error); },
      );
    }
  };
  // Paper cannot be unfolded.
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details.detail")) folded.open = true;
  });
  draw();
})();
