"""The protocol block: with what, on what and how the shown runs were measured."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.records.record import CorpusInfo, Record, RecoveryInfo


@dataclass(frozen=True)
class Block:
    """A small table of facts; ``runs`` counts the records that agree in each line."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_READINGS = frozenset({"gpu", "idle_bytes", "kv_blocks", "load_seconds", "parameter_bytes"})
"""What a timing's protocol holds of one process, beside the settings that all have in common."""


def provenance(records: Sequence[Record], origins: Mapping[str, str] | None = None) -> list[Block]:
    """Return the facts of all records, each distinct combination once with its number of runs.

    Args:
        records: of one or several stores.
        origins: what the store of each run is called, by id; empty or None where there is one alone.
    """
    measured = [record for record in records if record.scores]
    blocks = [
        _block(
            "Stores",
            ("store", "device", "moebench commit"),
            ((origins[r.id], *_made_by(r)) for r in records if origins and r.id in origins),
        ),
        _block("Models", ("model", "family", "revision", "content"), (_model(r) for r in records)),
        _block(
            "Tasks",
            ("task", "metric", "filter", "items", "version", "digest"),
            (
                (s.task, s.metric, s.filter, f"{s.n:,}", s.version, s.digest[:16])
                for r in measured
                for s in sorted(r.scores, key=lambda s: (s.task, s.metric, s.filter))
            ),
        ),
        _block(
            "Calibration text",
            ("text", "tokens", "sequences", "propagation", "digest"),
            (
                (
                    r.corpus.name,
                    _tokens(r.corpus),
                    f"{r.corpus.sequences:,}",
                    r.corpus.propagation,
                    r.corpus.digest[:16],
                )
                for r in records
                if r.corpus
            ),
        ),
        _block(
            "Training after compression",
            ("kind", "text", "tokens", "steps", "settings"),
            (_training(r.recovery) for r in records if r.recovery),
        ),
        _block("Seeds", ("purpose", "seed"), ((name, str(seed)) for r in records for name, seed in r.seeds.items())),
        _block(
            "Timing",
            ("setting", "value"),
            (
                (name, value if isinstance(value, str) else json.dumps(value, sort_keys=True))
                for r in records
                if r.timing and r.timing.reason is None
                for name, value in r.timing.protocol.items()
                if name not in _READINGS
            ),
        ),
        _block("Environment", ("what", "value"), (line for r in records for line in _environment(r))),
    ]
    return [block for block in blocks if block.rows]


def _tokens(corpus: CorpusInfo) -> str:
    """Return the tokens that were run, and how many of them count where these are not all."""
    return f"{corpus.tokens:,}" + ("" if corpus.counted is None else f", of which {corpus.counted:,} in answers count")


def _model(record: Record) -> tuple[str, ...]:
    model = record.model
    return (model.name, model.family, model.revision or "–", model.content[:16])


def _training(recovery: RecoveryInfo) -> tuple[str, ...]:
    settings = {name: value for name, value in recovery.settings.items() if name != "kind" and value is not None}
    told = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(settings.items()))
    return (recovery.kind, recovery.corpus, f"{recovery.tokens:,}", f"{recovery.steps:,}", told)


def _made_by(record: Record) -> tuple[str, str]:
    """Return device and commit of a run."""
    environment = record.environment
    if environment is None:
        return "–", "–"
    commit = (environment.commit or "not from a checkout")[:12]
    return environment.device, f"{commit}, with uncommitted changes" if environment.dirty else commit


def _environment(record: Record) -> Iterable[tuple[str, str]]:
    environment = record.environment
    if environment is None:
        return
    device, commit = _made_by(record)
    yield "moebench commit", commit
    yield "device", device
    yield "threads", str(environment.threads)
    yield from environment.versions.items()


def _block(title: str, head: tuple[str, ...], lines: Iterable[tuple[str, ...]]) -> Block:
    counted = Counter(lines)
    return Block(title, (*head, "runs"), tuple((*line, str(counted[line])) for line in sorted(counted)))
