"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
  };
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

  const table = document.getElementById("board");
  if (!table) return;
  const runs = [...table.tBodies];
  const heads = [...table.tHead.rows[0].cells];

  // Numbers compare as numbers; what is missing goes last in both directions; ties keep the order of the page.
  const compare = (column, sign) => (a, b) => {
    const [x, y] = [a, b].map((run) => run.rows[0].cells[column].dataset.v);
    if (x === "" || y === "") return (x === "") - (y === "") || runs.indexOf(a) - runs.indexOf(b);
    const [m, n] = [Number(x), Number(y)];
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y, "en") : m - n;
    return sign * order || runs.indexOf(a) - runs.indexOf(b);
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const sorted = next === "none" ? runs : [...runs].sort(compare(column, next === "ascending" ? 1 : -1));
      table.classList.toggle("sorted", next !== "none");
      table.append(...sorted);
    });
  });

  table.addEventListener("click", (event) => {
    const fold = event.target.closest(".fold");
    if (!fold) return;
    const detail = fold.closest("tbody").rows[1];
    detail.hidden = !detail.hidden;
    fold.setAttribute("aria-expanded", String(!detail.hidden));
  });

  const search = document.getElementById("t-search");
  const board = document.getElementById("t-board");
  const floor = document.getElementById("t-floor");
  const texts = runs.map((run) => run.textContent.toLowerCase());
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    runs.forEach((run, place) => {
      run.hidden = !(words.every((word) => texts[place].includes(word))
        && (board.value === "" || run.dataset.board === board.value)
        && !(floor.checked && run.dataset.floor === "below"));
      shown += !run.hidden;
    });
    document.getElementById("t-count").textContent = `${shown} of ${runs.length} rows`;
  };
  [search, board, floor].forEach((control) => control.addEventListener("input", filter));
  filter();
  document.querySelectorAll("[data-group]").forEach((box) => {
    box.addEventListener("change", () => table.classList.toggle(`g-${box.dataset.group}`, box.checked));
  });
})();
