"""A study laid out: which rows stand in which table, under what names, and with which columns."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from analysis.averaging import average_seeds
from analysis.comparison import Comparison, compare
from analysis.study_cells import AVERAGE, Cell, cell, leaders
from bench.records.record import Record

GENERATIVE = ("exact_match", "f1", "pass@1", "pass_at_1")
"""Metrics of generated text; their tasks stand behind the others."""


@dataclass(frozen=True)
class Entry:
    """One line of a table: a method with its settings, and its cells by column."""

    label: str
    method: str
    row: Comparison
    cells: Mapping[str, Cell | None]


@dataclass(frozen=True)
class Table:
    """All methods on one model at one share, calibrated on the same corpus.

    Args:
        columns: ``AVERAGE`` and the tasks.
        entries: best average first.
    """

    model: str
    keep: str
    columns: tuple[str, ...]
    base: Entry | None
    entries: tuple[Entry, ...]

    @cached_property
    def leading(self) -> Mapping[str, set[int]]:
        """By column, the places of the best entry and of those that are not separated from it."""
        return {column: leaders([entry.cells[column] for entry in self.entries]) for column in self.columns}


@dataclass(frozen=True)
class DomainRun:
    """One method at one share calibrated on one domain, beside itself calibrated on all."""

    model: str
    keep: str
    domain: str
    alone: Entry
    all: Entry


@dataclass(frozen=True)
class Study:
    """What the records hold, laid out.

    Args:
        corpus: name of the corpus of the main tables; empty where no method read a text.
        short: names of tasks without what they have in common.
    """

    tables: tuple[Table, ...]
    domains: tuple[DomainRun, ...]
    corpus: str
    short: Mapping[str, str]
    unfinished: tuple[Comparison, ...] = field(default=())

    @property
    def models(self) -> list[str]:
        """Names of the models, in order."""
        return list(dict.fromkeys(table.model for table in self.tables))


def lay_out(records: Iterable[Record]) -> Study:
    """Return the study of ``records``; the result does not depend on their order."""
    rows = average_seeds(compare(sorted(records, key=lambda record: record.id)))
    complete = [row for row in rows if row.record.status == "complete" and row.accuracies]
    runs = [row for row in complete if not row.is_base]
    corpus = _main_corpus(runs)
    labels = _labels(runs)
    names = _model_names(complete)
    tasks = sorted({task for row in complete for task in row.accuracies})
    bases = {row.board: row for row in complete if row.is_base}
    main: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    beside: list[tuple[str, str, str, Entry]] = []
    for row in runs:
        entry = _entry(row, labels[row.record.id])
        place = (row.board, _keep(row))
        if row.record.corpus is None or row.record.corpus.name == corpus:
            main[place].append(entry)
        else:
            beside.append((*place, row.record.corpus.name, entry))
    tables = []
    for (board, keep), entries in sorted(main.items(), key=lambda item: (names[item[0][0]], _descending(item[0][1]))):
        columns = (AVERAGE, *sorted(entries[0].row.accuracies, key=lambda task: _order(entries[0].row, task)))
        base = _entry(bases[board], "uncompressed") if board in bases else None
        ordered = sorted(entries, key=lambda entry: (-_value(entry), entry.label, entry.row.record.id))
        tables.append(Table(names[board], keep, columns, base, tuple(ordered)))
    references = {(*place, entry.label): entry for place, entries in main.items() for entry in entries}
    domains = [
        DomainRun(names[board], keep, _domain(name, corpus), entry, references[board, keep, entry.label])
        for board, keep, name, entry in beside
        if (board, keep, entry.label) in references
    ]
    order = sorted(domains, key=lambda run: (run.model, _descending(run.keep), run.alone.label, run.domain))
    unfinished = tuple(row for row in rows if row.record.status != "complete")
    return Study(tuple(tables), tuple(order), corpus, _short(tasks), unfinished)


def _entry(row: Comparison, label: str) -> Entry:
    columns = (AVERAGE, *row.accuracies)
    return Entry(label, row.record.method or "base", row, {column: cell(row, column) for column in columns})


def _value(entry: Entry) -> float:
    found = entry.cells[AVERAGE]
    return found.mean.value if found else 0.0


def _main_corpus(runs: Sequence[Comparison]) -> str:
    """Return the corpus that most runs were calibrated on; of equals the one with the shortest name."""
    names = Counter(row.record.corpus.name for row in runs if row.record.corpus for _ in range(row.runs))
    methods = defaultdict(set)
    for row in runs:
        if row.record.corpus:
            methods[row.record.corpus.name].add(_settings(row))
    return min(names, key=lambda name: (-len(methods[name]), -names[name], len(name), name), default="")


def _keep(row: Comparison) -> str:
    keep = row.record.knobs.get("keep")
    return f"{keep:g}" if isinstance(keep, int | float) else json.dumps(keep)


def _descending(keep: str) -> tuple[float, str]:
    try:
        return (-float(keep), "")
    except ValueError:
        return (1.0, keep)


def _settings(row: Comparison) -> tuple[str, str]:
    knobs = {name: value for name, value in row.record.knobs.items() if name not in ("keep", "seed")}
    return (row.record.method or "", json.dumps(knobs, sort_keys=True))


def _labels(runs: Sequence[Comparison]) -> dict[str, str]:
    """Return a name for each run: its title, with the knobs in which runs of its method differ."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in runs:
        for name, value in row.record.knobs.items():
            values[row.record.method or "", name].add(json.dumps(value))
    labels = {}
    for row in runs:
        shown = [
            f"{name} {value if isinstance(value, str) else json.dumps(value)}"
            for name, value in sorted(row.record.knobs.items())
            if name not in ("keep", "seed") and len(values[row.record.method or "", name]) > 1
        ]
        labels[row.record.id] = ", ".join([row.record.title, *shown])
    return labels


def _model_names(rows: Sequence[Comparison]) -> dict[str, str]:
    """Return a name for each board: the model's, with the board's own digest where a model has several."""
    names = {row.board: row.record.model.name for row in rows}
    counts = Counter(names.values())
    return {board: name if counts[name] == 1 else f"{name} [{board[-8:]}]" for board, name in names.items()}


def _order(row: Comparison, task: str) -> tuple[bool, str]:
    return (row.scores[task].metric in GENERATIVE, task)


def _short(tasks: Sequence[str]) -> dict[str, str]:
    """Return the tasks without the words that all of them begin with."""
    words = [task.split("_") for task in tasks]
    common = 0
    while len(tasks) > 1 and len({tuple(word[: common + 1]) for word in words}) == 1:
        common += 1
    return {task: "_".join(word[common:]) or task for task, word in zip(tasks, words, strict=True)}


def _domain(name: str, corpus: str) -> str:
    return name.removeprefix(f"{corpus}:")
