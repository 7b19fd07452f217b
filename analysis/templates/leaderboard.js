"use strict";
const moebench = (() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const setTheme = (theme) => {
    root.dataset.theme = theme;
    document.dispatchEvent(new Event("themechange"));
  };
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));

  // Data lie in the page compressed: base64 of a zlib stream of JSON.
  const unpack = async (id) => {
    const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  };
  const shared = { unpack, shown: null, open: () => {}, pick: () => {}, ready: Promise.resolve() };
  const table = document.getElementById("board");
  if (!table) return shared;

  const heads = [...table.tHead.rows[0].cells];
  const STEP = 100;
  const element = (name, text, style) => {
    const made = document.createElement(name);
    if (text) made.textContent = text;
    if (style) made.className = style;
    return made;
  };

  const start = (data) => {
    const count = data.id.length;
    const made = new Map();
    let order = [...Array(count).keys()];
    let listed = [];
    let written = 0;
    const best = data.cells.map((column) => new Set(column.best ?? []));

    const cell = (head, column, row, place) => {
      const found = element("td", "", head.dataset.style + (best[place].has(row) ? " best" : ""));
      if (head.dataset.g) found.dataset.g = head.dataset.g;
      if (column.hint?.[row]) found.title = column.hint[row];
      if (head.dataset.style.includes("stick")) {
        const pick = element("input", "", "pick");
        Object.assign(pick, { type: "checkbox", title: "compare with another row" });
        pick.setAttribute("aria-label", `compare ${column.text[row]} ${column.sub?.[row] ?? ""}`);
        pick.addEventListener("change", () => shared.pick(row, pick));
        const fold = element("button", column.text[row], "fold");
        fold.type = "button";
        fold.setAttribute("aria-expanded", "false");
        const name = element("div", "", "name");
        name.append(pick, fold);
        found.append(name);
      } else found.append(column.text[row]);
      if (column.sub?.[row]) found.append(element("small", column.sub[row]));
      return found;
    };
    const body = (row) => {
      if (!made.has(row)) {
        const group = element("tbody", "", [data.base[row] && "base", data.below[row] && "below"].filter(Boolean).join(" "));
        const line = element("tr");
        data.cells.forEach((column, place) => line.append(cell(heads[place], column, row, place)));
        group.dataset.row = row;
        group.append(line);
        made.set(row, group);
      }
      return made.get(row);
    };
    const write = () => {
      const next = listed.slice(written, written + STEP).map(body);
      next.forEach((group, place) => {
        const row = written + place;
        group.classList.toggle("first", row > 0 && data.board[listed[row - 1]] !== data.board[listed[row]]);
      });
      table.append(...next);
      written += next.length;
      document.getElementById("t-more").hidden = written >= listed.length;
    };
    const show = () => {
      [...table.tBodies].forEach((group) => group.remove());
      written = 0;
      write();
    };

    // What is missing goes last in both directions; ties keep the order of the page.
    const compare = (places, sign) => (a, b) => {
      const [x, y] = [places[a], places[b]];
      if (x < 0 || y < 0) return (x < 0) - (y < 0) || a - b;
      return sign * (x - y) || a - b;
    };
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const next = { none: "descending", descending: "ascending", ascending: "none" }[head.getAttribute("aria-sort")];
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", next);
        order = [...Array(count).keys()];
        if (next !== "none") order.sort(compare(data.cells[column].place, next === "ascending" ? 1 : -1));
        table.classList.toggle("sorted", next !== "none");
        filter(false);
      });
    });

    const texts = Array.from({ length: count }, (_, row) =>
      data.cells.map((column) => `${column.text[row]} ${column.sub?.[row] ?? ""} ${column.hint?.[row] ?? ""}`).join(" ").toLowerCase());
    const search = document.getElementById("t-search");
    const floor = document.getElementById("t-floor");
    const chosen = (name) => document.getElementById(`t-${name}`)?.value ?? "";
    const filter = (changed = true) => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const [family, board, kind, budget] = ["family", "board", "kind", "budget"].map(chosen);
      listed = order.filter((row) =>
        words.every((word) => texts[row].includes(word))
        && (family === "" || data.family[data.board[row]] === family)
        && (board === "" || data.boards[data.board[row]] === board)
        // The uncompressed model stays beside whatever is compared with it.
        && (kind === "" || data.base[row] || data.kind[row] === kind)
        && (budget === "" || data.base[row] || (data.share[row] !== null && data.share[row] <= Number(budget) + 1e-9))
        && !(floor.checked && data.below[row]));
      document.getElementById("t-count").textContent = `${listed.length} of ${count} rows`;
      show();
      if (changed) {
        shared.shown = listed.length === count ? null : new Set(listed.map((row) => data.id[row]));
        document.dispatchEvent(new Event("rowschange"));
      }
    };
    let waiting = 0;
    search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
    [floor, ...document.querySelectorAll("[data-filter]")].forEach((control) => control.addEventListener("input", () => filter()));
    document.getElementById("t-more").addEventListener("click", write);
    const frame = table.parentElement;
    frame.addEventListener("scroll", () => {
      if (written < listed.length && frame.scrollTop + frame.clientHeight > frame.scrollHeight - 400) write();
    }, { passive: true });
    document.querySelectorAll("[data-group]").forEach((box) => {
      box.addEventListener("change", () => table.classList.toggle(`g-${box.dataset.group}`, box.checked));
    });
    table.addEventListener("click", async (event) => {
      const fold = event.target.closest(".fold");
      if (!fold) return;
      const group = fold.closest("tbody");
      if (group.rows.length < 2) {
        const line = element("tr", "", "detail");
        line.hidden = true;
        const sheet = element("td");
        sheet.colSpan = heads.length;
        line.append(sheet);
        group.append(line);
        await shared.open(Number(group.dataset.row), sheet);
      }
      const detail = group.rows[1];
      detail.hidden = !detail.hidden;
      fold.setAttribute("aria-expanded", String(!detail.hidden));
    });
    shared.board = data;
    filter(false);
    table.dataset.ready = "yes";
    performance.mark("table");
  };
  shared.ready = unpack("rows").then(start);
  return Object.assign(shared, { element });
})();
