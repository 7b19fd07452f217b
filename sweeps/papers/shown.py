"""Numbers that figures show: measured once for each model and text, and kept in the store as plain JSON values.

They are kept under everything that they depend on, as statistics themselves are, with the names of model and text beside
them, so that a figure can be drawn from the store alone, where neither is at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.calibration.cache import code_of
from bench.calibration.code_digest import code_digest
from bench.calibration.conditions import Effort
from bench.calibration.inputs import sampling_of, settings_of
from bench.models.device import resolved_device
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import MoebenchError, RecordError
from methods.framework.outside import an_object, read_json
from methods.framework.stats import Stats
from sweeps.papers.stand_in import StandIn

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus

KIND = "figures"
"""Folder of the store's cache."""


@dataclass(frozen=True)
class Question:
    """What a figure shows of a model.

    Args:
        asked: in words that tell it from all others, as JSON values.
        needs: statistics that it is made of.
        values: makes it of the model and these statistics, as JSON values.
        code: digests of the code that does so.
        together: statistics of the same text that the figure needs besides, so that it is read once.
    """

    asked: Mapping[str, Any]
    needs: frozenset[str]
    values: Callable[[Checkpoint, Stats], Any]
    code: tuple[str, ...] = ()
    together: frozenset[str] = field(default_factory=frozenset)

    @property
    def reads_text(self) -> bool:
        """Whether it depends on a text, and not on weights alone."""
        return any(CATALOGUE[name].cost != "weights" for name in self.needs)


@dataclass(frozen=True)
class Answer:
    """What was found: JSON values, and the tokens that they are measured on (0: weights alone)."""

    values: Any
    tokens: int


def answer(question: Question, one: StandIn, text: CalibrationConfig, store: Path, *, run: bool) -> Answer | None:
    """Return what a figure shows of a model; None where it is not kept and nothing may be run.

    Args:
        question: what is shown.
        one: the model.
        text: that it is measured on.
        store: folder of what is kept.
        run: whether to measure; without it, the latest that was kept for a model and text of these names is taken.

    Raises:
        MoebenchError: the model or the text cannot be read, or a statistic is not defined for the model.
    """
    if one.model is None:
        return None
    kept = Store(store)
    names = {
        "asked": dict(question.asked),
        "model": one.name,
        "text": _named(text) if question.reads_text else None,
    }
    wanted: dict[str, Any] = json.loads(json.dumps(names))
    if not run:
        fitting = [found for found in _kept(kept) if all(found.get(name) == value for name, value in wanted.items())]
        latest = max(fitting, key=lambda found: str(found.get("created")), default=None)
    else:
        latest = _measured(question, one.model, text, kept, wanted)
    return None if latest is None else Answer(latest["values"], latest["tokens"])


def _measured(
    question: Question, model: str, text: CalibrationConfig, store: Store, wanted: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what is kept under the exact key, measured where it is not.

    Args:
        question: what is shown.
        model: folder, hub id or pocket model.
        text: that it is measured on.
        store: that keeps it.
        wanted: names that are kept beside it.
    """
    from bench.calibration.calibrate import calibrate
    from bench.checkpoint.checkpoint import Checkpoint

    checkpoint, device = Checkpoint.open(model), resolved_device(text.device)
    corpus = _corpus(checkpoint, text) if question.reads_text else None
    key = _key(question, checkpoint, corpus, text.sampled_tokens, device)
    found = store.recall(KIND, key)
    if found is None:
        stats = calibrate(
            checkpoint,
            corpus,
            question.needs | question.together,
            cache=store.cache / "stats",
            device=device,
            sampled_tokens=text.sampled_tokens,
        )
        found = {
            **wanted,
            "values": question.values(checkpoint, stats),
            "tokens": _tokens(question, corpus),
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        store.remember(KIND, key, found)
    return found


def _key(
    question: Question, checkpoint: Checkpoint, corpus: Corpus | None, sampled_tokens: int, device: str
) -> dict[str, Any]:
    """Return all that the numbers depend on: what the cache of statistics is keyed by, and what is made of them.

    Args:
        question: what is shown.
        checkpoint: the model.
        corpus: that it is measured on; None: weights alone.
        sampled_tokens: on which every expert runs.
        device: torch device.
    """
    effort = Effort()
    return {
        **settings_of(checkpoint, corpus, None, device, "auto"),
        **sampling_of(question.needs, corpus, sampled_tokens, effort.cka_tokens),
        "boundary_tokens": effort.boundary_tokens,
        "asked": dict(question.asked),
        "code": [code_digest(), code_of(question.needs), *question.code],
    }


def _corpus(checkpoint: Checkpoint, text: CalibrationConfig) -> Corpus:
    from bench.text.corpus import parse
    from bench.text.template import Talk

    how: dict[str, Any] = {"bos": text.bos, "answers_only": text.answers_only, "talk": Talk.of(text)}
    return parse(text.corpus, checkpoint, text.sequences, text.length, text.seed, **how)


def _tokens(question: Question, corpus: Corpus | None) -> int:
    if corpus is None:
        return 0
    boundary = any(CATALOGUE[name].cost == "boundary" for name in question.needs)
    return min(corpus.counted, Effort().boundary_tokens) if boundary else corpus.counted


def _named(text: CalibrationConfig) -> dict[str, Any]:
    """Return what tells a text from others by name alone."""
    spoken = {"system_instruction", "enable_thinking", "template_arguments"}
    fields = {"corpus", "sequences", "length", "seed", "bos", "answers_only", "sampled_tokens", *spoken}
    return text.model_dump(mode="json", include=fields)


def _kept(store: Store) -> Iterator[Mapping[str, Any]]:
    """Return what lies in the store; a file that cannot be read counts as absent."""
    for path in sorted((store.cache / KIND).glob("*.json")):
        try:
            document = an_object(read_json(path, RecordError), str(path), RecordError)
            value = store.recall(KIND, document["key"])
        except (MoebenchError, KeyError, TypeError, ValueError):
            continue
        if value is not None:
            yield value
