"use strict";
// Two runs on the same right and wrong items: the numbers of bench/evaluation/paired.py, for pairs that no record holds.
const pairs = (() => {
  const Z = 1.959963984540054;

  const halve = (low, high, below) => {
    for (let step = 0; step < 80; step++) {
      const middle = (low + high) / 2;
      if (below(middle)) low = middle; else high = middle;
    }
    return (low + high) / 2;
  };

  const logFactorials = [0];
  const logChoose = (n, k) => {
    for (let i = logFactorials.length; i <= n; i++) logFactorials.push(logFactorials[i - 1] + Math.log(i));
    return logFactorials[n] - logFactorials[k] - logFactorials[n - k];
  };
  // P(X <= k) of a binomial of n draws with probability p.
  const atMost = (k, n, p) => {
    if (p <= 0) return 1;
    if (p >= 1) return k >= n ? 1 : 0;
    let sum = 0;
    for (let i = 0; i <= k; i++) sum += Math.exp(logChoose(n, i) + i * Math.log(p) + (n - i) * Math.log1p(-p));
    return Math.min(1, sum);
  };

  const mcnemar = (won, lost) => (won + lost ? Math.min(1, 2 * atMost(Math.min(won, lost), won + lost, 0.5)) : 1);

  const clopper = (k, n) => [
    k === 0 ? 0 : halve(0, 1, (p) => 1 - atMost(k - 1, n, p) < 0.025),
    k === n ? 1 : halve(0, 1, (p) => atMost(k, n, p) > 0.025),
  ];

  const wald = (won, lost, items) => {
    const middle = (won - lost) / items;
    const half = Z * Math.sqrt(((won + lost) / items - middle ** 2) / items);
    return [middle - half, middle + half];
  };

  // Tango's score interval.
  const score = (won, lost, items) => {
    const statistic = (difference) => {
      const a = 2 * items;
      const b = -won - lost + (2 * items - won + lost) * difference;
      const c = -lost * difference * (1 - difference);
      const share = (Math.sqrt(Math.max(b * b - 4 * a * c, 0)) - b) / (2 * a);
      const variance = items * (2 * share + difference * (1 - difference));
      const gap = won - lost - items * difference;
      if (Math.abs(gap) < 1e-9 * items) return 0;
      return variance > 0 ? gap / Math.sqrt(variance) : Math.sign(gap) * Infinity;
    };
    const middle = (won - lost) / items;
    const edge = 1 - 1e-12;
    const low = middle === -1 ? -1 : Math.abs(statistic(-edge)) <= Z ? -edge : halve(-edge, middle, (d) => statistic(d) > Z);
    const high = middle === 1 ? 1 : Math.abs(statistic(edge)) <= Z ? edge : halve(middle, edge, (d) => statistic(d) > -Z);
    return [low, high];
  };

  const interval = (won, lost, items) => {
    const changed = won + lost;
    const exact = changed ? clopper(won, changed) : [0, 1];
    const ends = [
      score(won, lost, items),
      wald(won + 0.5, lost + 0.5, items + 2),
      exact.map((share) => ((2 * share - 1) * changed) / items),
    ];
    return [Math.min(...ends.map((end) => end[0])), Math.max(...ends.map((end) => end[1]))];
  };

  const bits = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const ones = (byte) => { let count = 0; for (; byte; byte &= byte - 1) count++; return count; };
  const compare = (items, first, second) => {
    const [a, b] = [bits(first), bits(second)];
    let [won, lost] = [0, 0];
    a.forEach((byte, place) => { won += ones(byte & ~b[place] & 255); lost += ones(~byte & b[place] & 255); });
    const [low, high] = interval(won, lost, items);
    return { items, won, lost, difference: (won - lost) / items, low, high, p: mcnemar(won, lost) };
  };

  // Tasks share no items, so the distances of their ends add in squares, each side by itself.
  const average = (tasks) => {
    const mean = tasks.reduce((sum, one) => sum + one.difference, 0) / tasks.length;
    const side = (end) => Math.hypot(...tasks.map((one) => one[end] - one.difference)) / tasks.length;
    return { difference: mean, low: mean - side("low"), high: mean + side("high") };
  };
  return { compare, average, interval, mcnemar };
})();
