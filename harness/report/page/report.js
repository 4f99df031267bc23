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
  if (document.getElementById("count")) {
    const count = document.getElementById("count");
    const near = filter.closest("details, section").querySelectorAll("table.data tbody tr");
    const rows = [...near].map((row) => [row, row.textContent.toLowerCase()]);
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const [row, text] of rows) {
        row.hidden = !words.every((word) => text.includes(word));
        shown += row.hidden ? 0 : 1;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
  }
  // The reader's choice holds for every page from here; where nothing can be stored it holds for this one.
  const root = document.documentElement;
  const kept = (value) => {
    try {
      return value === undefined ? localStorage.getItem("theme") : localStorage.setItem("theme", value);
    } catch {
      return null;
    }
  };
  if (kept()) root.dataset.theme = kept();
  document.getElementById("theme")?.addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    kept(root.dataset.theme);
  });
  // A link to what is folded unfolds it.
  const unfold = () => {
    let target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const menu = document.getElementById("menu");
    if (menu) menu.checked = false;
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  for (const link of document.querySelectorAll("#contents a[href^='#']")) {
    link.addEventListener("click", () => { if (link.hash === location.hash) unfold(); });
  }
  unfold();
  // Where the reader is, is marked in the contents.
  const links = new Map([...document.querySelectorAll("#contents a[href^='#']")].map((it) => [it.hash.slice(1), it]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) links.get(entry.target.id)?.toggleAttribute("data-here", entry.isIntersecting);
  }, { rootMargin: "-10% 0px -60% 0px" });
  for (const id of links.keys()) {
    const target = document.getElementById(id);
    if (target) seen.observe(target);
  }
  // Paper cannot be unfolded.
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("details.detail")) folded.open = true;
  });
})();
