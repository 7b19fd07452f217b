"""The order of the site's pages: sections of the first page become pages of their own, with what lies below them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.site.method_page import toctree
from methods.framework.errors import ConfigError

SECTIONS: Mapping[str, Sequence[str]] = {
    "Use it": (
        "commands",
        "command-reference",
        "library",
        "library-reference",
        "models",
        "corpora",
        "sweeps",
        "timing",
        "serving",
    ),
    "See what came out": (
        "measured",
        "expert-selection",
        "ancestry",
        "slimming",
        "searches",
        "papers/holistic",
        "papers/moe_i2",
        "papers/diversifying",
        "papers/field",
        "Report: the demo <results/demo>",
        "Report: real language <results/smollm2-moe>",
        "Report: whole test sets <results/real-language/leaderboard>",
        "Report: slimming <results/frontier/leaderboard>",
        "Report: speed <results/speed/leaderboard>",
        "Report: which experts should stay <results/expert-selection/study>",
        "Report: ancestry <results/ancestry/study>",
    ),
    "Trust it, build on it": ("trust", "design", "contributing", "pocket-models", "speed-benchmark", "changelog"),
}
"""Headings of docs/index.md, and the pages that stand below each in the navigation."""

NAMES = {"Use it": "use", "See what came out": "results-here", "Trust it, build on it": "build"}


def lay_out_navigation(out: Path) -> None:
    """Write a page for each section of the first page, and the lists from which Sphinx makes its navigation.

    Raises:
        ConfigError: the first page lacks a section.
    """
    start = out / "index.md"
    text = start.read_text(encoding="utf-8")
    for heading, names in SECTIONS.items():
        found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if found is None:
            raise ConfigError(
                f"docs/index.md has no section {heading!r}, which bench/site/navigation.py makes a page of"
            )
        page = f"# {heading}\n\n{found[1].strip()}\n\n{toctree(names)}"
        (out / f"{NAMES[heading]}.md").write_text(page, encoding="utf-8")
    tops = ["First steps <readme>", "use", "methods/index", "results-here", "build"]
    start.write_text(f"{text.rstrip()}\n\n{toctree(tops)}", encoding="utf-8")
