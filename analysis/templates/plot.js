"use strict";
(() => {
  // The plot's library is most of the page: it is run once the plot is looked at, and after the table is there.
  let data = null;
  const library = () => {
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  const [MOST, PANELS] = [1500, 9];
  const place = document.getElementById("plot");
  const choose = (name) => document.getElementById(`p-${name}`);
  const escape = (text) => text.replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const hover = (text) => {
    const [first, ...rest] = escape(text).split("\n");
    return [`<b>${first}</b>`, ...rest].join("<br>");
  };

  // Of more points than a plot can be read with, those of the best quality are drawn.
  const chosen = (board, quality) => {
    const points = data.points.filter((point) =>
      point.board === board.key && quality.key in point.quality && (moebench.shown === null || moebench.shown.has(point.id)));
    const room = Math.floor(MOST / boardsShown);
    if (points.length <= room) return points;
    left += points.length - room;
    const worth = (point) => (point.base ? Infinity : (quality.up ? 1 : -1) * point.quality[quality.key][0]);
    return [...points].sort((a, b) => worth(b) - worth(a)).slice(0, room);
  };
  let [left, boardsShown] = [0, 1];

  const traces = (board, axis, size, quality, theme, seen) => {
    const ink = theme === "dark" ? "#e6ebf1" : "#16202c";
    const points = chosen(board, quality);
    const x = (point) => point.size[size.key] / size.divisor;
    const sizes = points.map(x);
    const span = Math.max(Math.max(...sizes) - Math.min(...sizes), 0.02 * Math.max(...sizes));
    const apart = (place) => (data.methods.length < 2 ? 0 : (place / (data.methods.length - 1) - 0.5) * 0.04 * span);
    const y = (point) => point.quality[quality.key][0];
    const error = (list, colour) => ({
      type: "data", array: list.map((point) => point.quality[quality.key][1] ?? 0), color: colour, thickness: 1, width: 3,
    });
    const shared = { xaxis: `x${axis}`, yaxis: `y${axis}`, hovertemplate: "%{customdata}<extra></extra>" };
    const draw = (list, more, shift = 0) => ({
      ...shared, x: list.map((point) => x(point) + shift), y: list.map(y), customdata: list.map((point) => hover(point.text)), ...more,
    });
    const found = [];
    for (const [place, method] of data.methods.entries()) {
      const own = points.filter((point) => !point.base && point.title === method.title);
      for (const series of new Set(own.map((point) => point.series))) {
        const list = own.filter((point) => point.series === series).sort((a, b) => x(a) - x(b));
        const colour = method[theme];
        found.push(draw(list, {
          mode: list.length > 1 ? "lines+markers" : "markers", name: escape(method.title), legendgroup: method.title,
          showlegend: !seen.has(method.title), line: { color: colour, width: 1 }, opacity: 0.95,
          marker: { color: colour, size: 9, symbol: board.symbol, line: { color: theme === "dark" ? "#171e27" : "#fff", width: 1 } },
          error_y: error(list, colour),
        }, apart(place)));
        seen.add(method.title);
      }
    }
    const base = points.filter((point) => point.base);
    found.push(draw(base, {
      mode: "markers", name: "uncompressed", legendgroup: "\u0000base", showlegend: base.length > 0 && !seen.has("\u0000base"),
      marker: { color: ink, size: 13, symbol: `${board.symbol}-open`, line: { width: 2 } }, error_y: error(base, ink),
    }));
    if (base.length) seen.add("\u0000base");
    const front = (data.fronts[board.key]?.[quality.key]?.[size.key] ?? []).map((index) => data.points[index])
      .filter((point) => moebench.shown === null || moebench.shown.has(point.id));
    found.push({
      ...shared, x: front.map(x), y: front.map(y), mode: "lines", name: "Pareto front", legendgroup: "\u0000front",
      showlegend: front.length > 1 && !seen.has("\u0000front"), hoverinfo: "skip", hovertemplate: null,
      line: { color: ink, width: 1.5, dash: "dot", shape: "hv" },
    });
    if (front.length > 1) seen.add("\u0000front");
    return found;
  };

  const render = () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "dark" : "light";
    const [ink, soft, line] = theme === "dark" ? ["#e6ebf1", "#9aa7b6", "#2b3541"] : ["#16202c", "#566273", "#e3e7ed"];
    const size = data.sizes.find((one) => one.key === choose("size").value);
    const quality = data.qualities.find((one) => one.key === choose("quality").value);
    const wanted = choose("board").value;
    const there = new Set(data.points.filter((one) => moebench.shown === null || moebench.shown.has(one.id)).map((one) => one.board));
    const every = data.boards.filter((one) => (wanted === "" || one.key === wanted) && there.has(one.key));
    const boards = every.slice(0, PANELS);
    [left, boardsShown] = [0, Math.max(1, boards.length)];
    const width = place.clientWidth;
    const narrow = width < 640;
    const across = narrow ? 1 : Math.min(boards.length, 3);
    const down = Math.ceil(boards.length / across);
    const gap = { x: 0.055, y: narrow ? 0.09 : 0.16 };
    const layout = {
      height: Math.max(430, down * (narrow ? 330 : 370) + (narrow ? 150 : 90)), paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 13, family: "system-ui, Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif" },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink },
      margin: { l: 54, r: 12, t: 34, b: 60 }, hovermode: "closest", annotations: [],
      hoverlabel: { align: "left", bgcolor: theme === "dark" ? "#232d39" : "#ffffff", bordercolor: line, font: { color: ink } },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 0, yref: "container", yanchor: "bottom", itemwidth: 30 },
    };
    const seen = new Set();
    const all = boards.flatMap((board, index) => {
      const axis = index === 0 ? "" : String(index + 1);
      const [column, row] = [index % across, Math.floor(index / across)];
      const [w, h] = [(1 - gap.x * (across - 1)) / across, (1 - gap.y * (down - 1)) / down];
      const [left, top] = [column * (w + gap.x), 1 - row * (h + gap.y)];
      const style = { gridcolor: line, linecolor: soft, tickcolor: soft, zeroline: false, showline: true, ticks: "outside", automargin: true };
      layout[`xaxis${axis}`] = { ...style, domain: [left, left + w], anchor: `y${axis}`, title: { text: escape(size.label), standoff: 6, font: { size: 12, color: soft } } };
      layout[`yaxis${axis}`] = {
        ...style, domain: [Math.max(0, top - h), top], anchor: `x${axis}`,
        title: column === 0 ? { text: escape(quality.label), standoff: 6, font: { size: 12, color: soft } } : undefined,
      };
      layout.annotations.push({
        text: `<b>${escape(board.name)}</b>`, x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false,
      });
      return traces(board, axis, size, quality, theme, seen);
    });
    layout.margin.b = 62 + 22 * Math.ceil(seen.size / Math.max(1, Math.floor(width / 150)));
    Plotly.react(place, all, layout, { responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], showSendToCloud: false });
    document.getElementById("p-note").textContent = [
      every.length > boards.length && `${boards.length} of ${every.length} models are drawn: choose one, or filter.`,
      left > 0 && `${left} points of lower quality are not drawn: filter to see them.`,
    ].filter(Boolean).join(" ");
  };
  ["board", "quality", "size"].forEach((name) => choose(name).addEventListener("input", () => data && render()));
  document.addEventListener("themechange", () => data && render());
  document.addEventListener("rowschange", () => data && render());
  let before = place.clientWidth;
  addEventListener("resize", () => {
    if (data && Math.abs(place.clientWidth - before) > 40) { before = place.clientWidth; render(); }
  });
  const start = async () => {
    const found = await moebench.unpack("data");
    await moebench.ready;
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    performance.mark("library");
    library();
    performance.mark("drawing");
    data = found;
    render();
    performance.mark("plot");
    place.dataset.ready = "yes";
  };
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    start();
  }, { rootMargin: "200px" });
  watch.observe(place);
})();
