"use strict";
(() => {
  // A newer page takes over what is chosen, searched and looked at.
  const KEPT = "moebench-watch";
  const controls = () => [...document.querySelectorAll("header ~ main select, header ~ main input")].filter((one) => one.id || one.dataset.group);
  const name = (one) => one.id || `group-${one.dataset.group}`;
  const keep = () => {
    const values = Object.fromEntries(controls().map((one) => [name(one), one.type === "checkbox" ? one.checked : one.value]));
    sessionStorage.setItem(KEPT, JSON.stringify({ values, top: scrollY, theme: document.documentElement.dataset.theme }));
  };
  const restore = () => {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    if (!kept) return;
    if (kept.theme !== document.documentElement.dataset.theme) document.getElementById("theme").click();
    for (const one of controls()) {
      const value = kept.values[name(one)];
      if (value === undefined || value === (one.type === "checkbox" ? one.checked : one.value)) continue;
      if (one.type === "checkbox") one.checked = value;
      else one.value = value;
      one.dispatchEvent(new Event(one.dataset.group ? "change" : "input"));
    }
    scrollTo(0, kept.top);
  };
  moebench.ready.then(restore);
  const ask = async () => {
    try {
      const newest = await (await fetch("/version")).json();
      if (newest !== version) { keep(); location.reload(); return; }
    } catch { /* the server was stopped; the page stays */ }
    setTimeout(ask, 2000);
  };
  setTimeout(ask, 2000);
})();
