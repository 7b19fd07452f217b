"""What a method did on the models here, read from the tables of ``docs/results``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from methods.framework.description import knobs
from methods.framework.errors import ConfigError
from methods.framework.method import Method

Row = Mapping[str, str]
Cells = list[list[str]]
"""Rows of a table, its head first."""

POCKET = ("pocket-mixtral", "pocket-qwen2moe", "pocket-deepseek")
REMEDY = "the page of a method is made of this file; restore it, or mend bench/site/committed_results.py"
RENEWED = frozenset({"easy_ep", "d2_moe"})
"""Methods that changed after the tables were made; their rows lie in the ``measured-again`` tables beside them."""
SIDE = frozenset({"seed"})
"""Knobs that are the same in all rows of a table, so that they tell nothing."""


class CommittedResults:
    """Tables of ``docs/results``, each read once."""

    def __init__(self, folder: Path) -> None:
        """Read the tables in ``folder``.

        Raises:
            ConfigError: a table is not there.
        """
        self.selection = _renewed(
            _rows(folder / "expert-selection" / "scores.csv"),
            _rows(folder / "expert-selection" / "measured-again" / "scores.csv"),
        )
        self.demo = _rows(folder / "demo.csv")
        self.frontier = _renewed(
            _rows(folder / "frontier" / "leaderboard.csv"), _rows(folder / "frontier" / "measured-again.csv")
        )
        self.language = _rows(folder / "real-language" / "leaderboard.csv")
        self.speed = _rows(folder / "speed" / "speed.csv")

    def in_selection(self, cls: type[Method]) -> Cells:
        """Return averages over ten tasks with intervals over seeds, by variant and share; empty where it was not run."""
        own = [row for row in self.selection if row["method"] == cls.name and row["task"] == "average"]
        base = {
            row["model"]: row["mean"] for row in self.selection if row["method"] == "base" and row["task"] == "average"
        }
        labels = list(dict.fromkeys(row["label"] for row in own))
        shares = sorted({row["keep"] for row in own}, key=float, reverse=True)
        found = {(row["label"], row["keep"], row["model"]): row for row in own}
        head = ["keep", *(f"{model} ({_percent(base[model])})" for model in POCKET)]
        table = [
            [
                *([_variant(label, cls)] if len(labels) > 1 else []),
                f"{float(keep):g}",
                *(_with_half(found.get((label, keep, model))) for model in POCKET),
            ]
            for label in labels
            for keep in shares
        ]
        return [["variant", *head] if len(labels) > 1 else head, *table] if table else []

    def on_frontier(self, cls: type[Method]) -> Cells:
        """Return averages over ten tasks and shares of the bytes, by knobs and training; empty where it was not run."""
        own = [row for row in self.frontier if row["method"] == cls.name and row["status"] == "complete"]
        base = {row["model"]: row["average"] for row in self.frontier if row["is_base"] == "True"}
        by_knobs: dict[tuple[str, str], dict[str, Row]] = {}
        for row in own:
            label = (told_knobs(row["knobs"], cls), told_training(row))
            by_knobs.setdefault(label, {})[row["model"]] = row
        head = ["knobs", "trained by", *(f"{model} ({_percent(base[model])})" for model in POCKET)]
        table = [
            [f"`{label[0]}`", label[1], *(_with_error(found.get(model)) for model in POCKET)]
            for label, found in sorted(by_knobs.items(), key=_order)
        ]
        return [head, *table] if table else []

    def in_demo(self, cls: type[Method]) -> Cells:
        """Return averages over ten tasks and speeds under vLLM of the demo; empty where it was not run."""
        own = [row for row in self.demo if row["method"] == cls.name]
        head = ["model", "knobs", "average, %", "retention, %", "prefill ×", "decode ×"]
        table = [
            [
                row["model"],
                f"`{told_knobs(row['knobs'], cls)}`",
                f"{_percent(row['average'])} ± {_percent(row['average_error'])}",
                _percent(row["retention"]),
                _ratio(row, "prefill_ratio"),
                _ratio(row, "decode_ratio"),
            ]
            for row in own
        ]
        return [head, *table] if table else []

    def in_language(self, cls: type[Method]) -> Cells:
        """Return averages over four tasks and perplexity on the real-language model; empty where it was not run as it is."""
        own = [row for row in self.language if row["method"] == cls.name and cls.name not in RENEWED]
        head = ["knobs", "bytes, %", "average, %", "perplexity, base/run"]
        table = [
            [
                f"`{told_knobs(row['knobs'], cls)}`",
                _percent(row["keep_bytes"]),
                f"{_percent(row['average'])} ± {_percent(row['average_error'])}",
                f"{float(row['perplexity_retention']):.3f}",
            ]
            for row in own
        ]
        return [head, *table] if table else []

    def in_speed(self, cls: type[Method]) -> Cells:
        """Return speeds against the uncompressed model under vLLM, with marks; empty where none was taken."""
        own = [row for row in self.speed if row["method"] == cls.name and row["decode_ratio"]]
        head = ["model", "knobs", "batch", "prefill ×", "decode ×", "marks"]
        table = [
            [
                row["model"],
                f"`{told_knobs(row['knobs'], cls)}`",
                row["batch"],
                _ratio(row, "prefill_ratio"),
                _ratio(row, "decode_ratio"),
                row["marks"] or "–",
            ]
            for row in own
        ]
        return [head, *table] if table else []


def told_knobs(text: str, cls: type[Method]) -> str:
    """Return the knobs of a row without those at their default, ``keep`` always first."""
    usual = _defaults(cls)
    pairs = [(name, value) for name, _, value in (part.partition("=") for part in text.split(", "))]
    told = [
        (name, value)
        for name, value in pairs
        if name == "keep" or (name not in SIDE and "." not in name and usual.get(name) != value)
    ]
    return ", ".join(f"{name}={value}" for name, value in sorted(told, key=lambda pair: (pair[0] != "keep", pair[0])))


@cache
def _defaults(cls: type[Method]) -> Mapping[str, str]:
    return {knob.name: knob.default for knob in knobs(cls)}


def told_training(row: Row) -> str:
    """Return how a row was trained after compression, with what may differ between trainings; a dash where it was not."""
    kind = row["title"].partition(" + ")[2]
    parts = dict(part.partition("=")[::2] for part in row["knobs"].split(", "))
    rate, experts = parts.get("recovery.rate"), parts.get("recovery.experts")
    told = [kind, *([f"rate {rate}"] if rate else []), *(["experts too"] if experts == "true" else [])]
    return ", ".join(told) if kind else "–"


def _rows(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; {REMEDY}") from error


def _renewed(rows: Iterable[Row], again: Iterable[Row]) -> list[Row]:
    """Return ``rows``, where those of ``RENEWED`` methods are the later ones alone."""
    return [
        *(row for row in rows if row["method"] not in RENEWED),
        *(row for row in again if row["method"] in RENEWED),
    ]


def _order(item: tuple[tuple[str, str], Mapping[str, Row]]) -> tuple[float, str, str]:
    (told, training), found = item
    return -max(float(row["keep_asked"] or 0.0) for row in found.values()), told, training.strip("–")


def _variant(label: str, cls: type[Method]) -> str:
    return label.removeprefix(cls.title).strip(", ") or "default"


def _percent(value: str) -> str:
    return f"{100.0 * float(value):.1f}"


def _with_half(row: Row | None) -> str:
    if row is None:
        return "–"
    half = f" ± {_percent(row['half'])}" if row["half"] else ""
    return _percent(row["mean"]) + half


def _with_error(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{_percent(row['average'])} ± {_percent(row['average_error'])}; {100.0 * float(row['keep_bytes']):.0f} %"


def _ratio(row: Row, name: str) -> str:
    if not row[name]:
        return "–"
    low, high = float(row[f"{name}_low"]), float(row[f"{name}_high"])
    return f"{float(row[name]):.2f} [{low:.2f}, {high:.2f}]"


def markdown(cells: Cells) -> Iterator[str]:
    """Yield the lines of a Markdown table; columns of numbers stand right."""
    head, *rows = cells
    right = [all(row[place][:1] in {*"0123456789–"} for row in rows) for place in range(len(head))]
    yield "| " + " | ".join(head) + " |"
    yield "| " + " | ".join("---:" if one else "---" for one in right) + " |"
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
