"use strict";
(() => {
  if (!document.getElementById("board")) return;
  const { element } = moebench;
  let loading = null;
  const details = () => (loading ??= moebench.unpack("details"));

  const grid = (head, lines) => {
    const table = element("table", "", "facts");
    const row = table.createTHead().insertRow();
    head.forEach((name) => row.append(element("th", name)));
    const body = table.createTBody();
    for (const line of lines) {
      const own = body.insertRow();
      line.forEach((text) => own.append(element("td", text)));
    }
    const scroll = element("div", "", "scroll");
    scroll.append(table);
    return scroll;
  };
  const made = (title, text, style) => {
    const block = element("div", "", "made");
    block.append(element("b", title), element("pre", text, style));
    return block;
  };

  // Papers are named "arXiv 2306.11695"; the number leads to the paper's page.
  const linked = (text) => text.split(/(arXiv \d{4}\.\d{4,5})/).map((part, place) => {
    if (place % 2 === 0) return part;
    const link = element("a", part);
    Object.assign(link, { href: `https://arxiv.org/abs/${part.slice(6)}`, rel: "noreferrer", target: "_blank" });
    return link;
  });

  moebench.open = async (row, cell) => {
    const data = await details();
    const one = data.rows[row];
    const sheet = element("div", "", "sheet");
    if (one.tasks.length) sheet.append(grid(data.head, one.tasks));
    const facts = element("dl");
    for (const [name, value] of one.facts) {
      const line = element("div");
      const told = element("dd");
      told.append(...linked(value));
      line.append(element("dt", name), told);
      facts.append(line);
    }
    for (const [title, address] of one.pages ?? []) {
      const line = element("div");
      const told = element("dd");
      told.append(Object.assign(element("a", title), { href: address }));
      line.append(element("dt", "Its paper here"), told);
      facts.append(line);
    }
    sheet.append(facts, made(one.open ? `Made by (not recorded: ${one.open})` : "Made by", one.command, "command"));
    if (one.plan) sheet.append(made(`Plan of ${one.run}: decoder layers, experts of the source, and what else`, one.plan.join("\n")));
    else if (!moebench.board.base[row]) sheet.append(element("p", "This page does not hold the plan; it lies in the store, in plans/.", "small"));
    cell.append(sheet);
  };

  const percent = (value) => {
    const text = Math.abs(100 * value).toFixed(1);
    return Number(text) === 0 ? text : `${value < 0 ? "−" : "+"}${text}`;
  };
  const ends = (one) => `${percent(one.difference)} [${percent(one.low)}, ${percent(one.high)}]`;
  const picked = [];
  moebench.pick = async (row, box) => {
    const place = picked.findIndex((one) => one.row === row);
    if (place >= 0) picked.splice(place, 1);
    if (box.checked) picked.push({ row, box });
    while (picked.length > 2) picked.shift().box.checked = false;
    const panel = document.getElementById("versus");
    panel.replaceChildren();
    if (picked.length < 2) {
      panel.append(element("p", "Mark two rows of a model (□ beside the method) to compare them item by item.", "small"));
      return;
    }
    const data = await details();
    const board = moebench.board;
    const [a, b] = picked.map((one) => one.row);
    const column = board.cells[[...document.getElementById("board").tHead.rows[0].cells].findIndex((head) => head.classList.contains("stick"))];
    const name = (row) => [column.text[row], column.sub?.[row]].filter(Boolean).join(" ");
    panel.append(element("h3", `${name(a)} against ${name(b)}`));
    const [first, second] = [data.rows[a].items ?? {}, data.rows[b].items ?? {}];
    const tasks = Object.keys(first).filter((key) => key in second).map((key) => ({
      name: data.protocols[key].slice(0, 2), ...pairs.compare(first[key][0], first[key][1], second[key][1]),
    }));
    if (!tasks.length || board.board[a] !== board.board[b]) {
      panel.append(element("p", board.board[a] !== board.board[b]
        ? "These rows were not measured on the same model, tasks and items."
        : "This page does not hold the items of both: it has those of single runs that rank first, where they lie beside the records.", "small"));
      return;
    }
    const lines = tasks.map((one) => [
      ...one.name, ends(one), one.p < 0.001 ? "< 0.001" : one.p.toFixed(3), String(one.won), String(one.lost), String(one.items),
    ]);
    if (tasks.length > 1) lines.push(["average", "", ends(pairs.average(tasks)), "", "", "", ""]);
    panel.append(
      grid(["task", "metric", "difference, points", "p", "only the first right", "only the second right", "items"], lines),
      element("p", "Positive: the first is right more often. Paired item by item, 95 % intervals and McNemar's exact test, not corrected for the number of tasks; tasks whose items are right or wrong.", "small"),
    );
    panel.scrollIntoView({ block: "nearest" });
  };
})();
