"""Statistics that figures show: measured once for each model and text, and kept in the store as plain numbers.

A value is kept under everything that it depends on, as statistics themselves are, with the name of the model and of the text
beside it, so that a figure can be drawn from the store alone, where neither is at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bench.calibration.cache import code_of
from bench.calibration.calibrate import calibrate
from bench.calibration.code_digest import code_digest
from bench.calibration.conditions import Effort
from bench.calibration.inputs import sampling_of, settings_of
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.device import resolved_device
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.store.store import Store
from bench.text.corpus import Corpus, parse
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import ConfigError, MoebenchError, RecordError
from methods.framework.outside import an_object, read_json
from sweeps.papers.paper_file import StatisticFile
from sweeps.papers.stand_in import Conditions, StandIn

KIND = "shown"
"""Folder of the store's cache."""
_SHOWN: tuple[tuple[str, ...], ...] = ((), ("B", "B"))
"""Axes of the statistics that can be shown."""
Numbers = list[float | None] | list[list[float]]
"""A number of each layer, None where a layer has none, or a matrix of the model."""


@dataclass(frozen=True)
class Values:
    """One statistic of one model on one text.

    Args:
        numbers: its values.
        tokens: that it is a mean over.
        seed: of the text.
    """

    numbers: Numbers
    tokens: int
    seed: int


def text_of(place: StatisticFile, one: StandIn, settings: Conditions) -> CalibrationConfig:
    """Return the text that a statistic is measured on.

    Args:
        place: the statistic.
        one: the model.
        settings: of the figure.
    """
    own = place.pocket_calibration if one.pocket else place.calibration
    return validated({**settings.calibration.model_dump(), **own}, CalibrationConfig, place.label)


def measured(
    places: Sequence[StatisticFile], one: StandIn, settings: Conditions, store: Path, *, run: bool
) -> list[Values | None]:
    """Return the values of each statistic of a figure; None where they are not kept and nothing may be run.

    Args:
        places: the statistics.
        one: the model.
        settings: of the figure.
        store: folder of what is kept.
        run: whether to measure; without it, the latest that was kept for a model and text of these names is taken.

    Raises:
        MoebenchError: the model or the text cannot be read, or a statistic is not defined for the model.
    """
    if one.model is None:
        return [None for _ in places]
    texts = [text_of(place, one, settings) for place in places]
    if not run:
        kept = list(_kept(Store(store).cache / KIND))
        return [_latest(place, one, text, kept) for place, text in zip(places, texts, strict=True)]
    checkpoint = Checkpoint.open(one.model)
    found: list[Values | None] = []
    for place, text in zip(places, texts, strict=True):
        together = frozenset(other.name for other, its in zip(places, texts, strict=True) if its == text)
        found.append(_value(place.name, together, checkpoint, one.name, text, Store(store)))
    return found


def _value(
    name: str, together: frozenset[str], checkpoint: Checkpoint, model: str, text: CalibrationConfig, store: Store
) -> Values:
    """Return one statistic; ``together`` are all that the figure takes from this text, so that it is read once."""
    if name not in (shown := [one for one in CATALOGUE if CATALOGUE[one].dims in _SHOWN]):
        raise ConfigError(
            f"a figure cannot show statistic {name!r}: it is no number of each layer and no matrix of two places in the "
            f"depth; these are: {', '.join(sorted(shown))}"
        )
    corpus = parse(text.corpus, checkpoint, text.sequences, text.length, text.seed, text.bos, text.answers_only)
    key = _key(name, checkpoint, corpus, text)
    found = store.recall(KIND, key)
    if found is None:
        spec = CATALOGUE[name]
        stats = calibrate(
            checkpoint,
            corpus,
            together,
            cache=store.cache / "stats",
            device=resolved_device(text.device),
            sampled_tokens=text.sampled_tokens,
        )
        numbers: Numbers = (
            [[float(value) for value in row] for row in np.asarray(stats.model(name))]
            if spec.scope == "model"
            else [None if value is None else float(np.asarray(value).item()) for value in stats.values[name]]
        )
        found = {
            "model": model,
            "text": _named(text),
            "numbers": numbers,
            "tokens": min(corpus.counted, Effort().boundary_tokens) if spec.cost == "boundary" else corpus.counted,
            "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        }
        store.remember(KIND, key, found)
    return Values(found["numbers"], found["tokens"], text.seed)


def _key(name: str, checkpoint: Checkpoint, corpus: Corpus, text: CalibrationConfig) -> dict[str, Any]:
    """Return all that the values of a statistic depend on: what the cache of statistics is keyed by."""
    effort = Effort()
    return {
        **settings_of(checkpoint, corpus, None, resolved_device(text.device), "auto"),
        **sampling_of({name}, corpus, text.sampled_tokens, effort.cka_tokens),
        "boundary_tokens": effort.boundary_tokens,
        "statistic": name,
        "code": [code_digest(), code_of({name})],
    }


def _named(text: CalibrationConfig) -> dict[str, Any]:
    """Return what tells a text from others by name alone."""
    return text.model_dump(mode="json", include={"corpus", "sequences", "length", "seed", "bos", "answers_only"})


def _kept(folder: Path) -> Iterable[Mapping[str, Any]]:
    """Return what lies in the store, the earliest first; a file that cannot be read counts as absent."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = an_object(read_json(path, RecordError), str(path), RecordError)
            value = Store(folder.parent.parent).recall(KIND, document["key"])
        except (MoebenchError, KeyError, TypeError, ValueError):
            continue
        if value is not None:
            found.append({**value, "statistic": document["key"].get("statistic")})
    return sorted(found, key=lambda one: str(one.get("created")))


def _latest(
    place: StatisticFile, one: StandIn, text: CalibrationConfig, kept: Sequence[Mapping[str, Any]]
) -> Values | None:
    wanted = (place.name, one.name, _named(text))
    fitting = [each for each in kept if (each["statistic"], each.get("model"), each.get("text")) == wanted]
    return Values(fitting[-1]["numbers"], fitting[-1]["tokens"], text.seed) if fitting else None
