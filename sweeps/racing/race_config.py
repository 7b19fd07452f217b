"""The file of a race: one space on some models, searched by several contenders for the same number of tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import yaml
from pydantic import Field, model_validator

from bench.settings.mixture import CorpusLine
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import Strict, validated
from bench.store.store import digest_of
from methods.framework.errors import ConfigError
from methods.framework.outside import read_text
from sweeps.budget import Budget
from sweeps.resident import Windows
from sweeps.space.step import SearchStep
from sweeps.sweep_config import SweepConfig, parse_sweep

ContenderName: TypeAlias = Literal[
    "uniform",
    "table",
    "table_local",
    "table_model",
    "shapes_model",
    "table_cmaes",
    "local",
    "tpe",
    "cmaes",
    "nsga2",
    "gp",
    "evoesap",
    "evopress",
    "evopress_staged",
    "rco",
]
"""Who may run; docs/search.md tells what each does."""


class Race(Strict):
    """One space, several models, several contenders."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the race")
    models: tuple[str, ...] = Field(min_length=1, description="folders or hub ids")
    recipe: tuple[SearchStep, ...] = Field(min_length=1, description="steps and their searched knobs")
    budget: Budget = Field(description="limit on every plan")
    calibration: CalibrationConfig = Field(default=CalibrationConfig(), description="text of the statistics")
    corpus: CorpusLine = Field(description="text of the search, and of what is held out")
    judge: CorpusLine | None = Field(default=None, description="text of what is held out, where it is another one")
    length: int = Field(default=128, ge=2, description="tokens of a window")
    windows: int = Field(default=8, ge=1, description="windows of an evaluation; other ones for each seed")
    held_out: int = Field(
        default=64, ge=2, description="windows that the best plan is judged by; the same for all seeds"
    )
    evaluations: int = Field(default=96, ge=2, description="evaluations' worth of tokens that each contender may spend")
    anchors: int = Field(default=4, ge=2, description="options of an axis that the score table measures")
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1, description="of samplers and of windows")
    contenders: tuple[ContenderName, ...] = Field(min_length=1, description="who runs")

    @model_validator(mode="after")
    def _layered(self) -> Self:
        if not any(step.layered for step in self.recipe):
            raise ValueError("a race is over knobs with `by: layer` or `by: matrix`")
        return self

    @property
    def held_out_windows(self) -> Windows:
        """The text that plans are judged by."""
        return Windows(corpus=self.judge or self.corpus, sequences=self.held_out, length=self.length, seed=10_000)

    def search_windows(self, seed: int) -> Windows:
        """Return the text of one seed's search."""
        return Windows(corpus=self.corpus, sequences=self.windows, length=self.length, seed=1_000 + seed)

    def first_window(self, seed: int) -> Windows:
        """Return the text of the first stage of one seed's search, where there are stages."""
        return Windows(corpus=self.corpus, sequences=1, length=self.length, seed=2_000 + seed)

    def sweep(self, model: str) -> SweepConfig:
        """Return the sweep that opens one model with all the text that searches read."""
        texts = []
        for seed in self.seeds:
            texts += [self.search_windows(seed), self.first_window(seed)]
        settings: dict[str, Any] = {
            "name": self.name,
            "model": model,
            "recipe": [step.model_dump(mode="json") for step in self.recipe],
            "budget": self.budget.model_dump(mode="json"),
            "calibration": self.calibration.model_dump(mode="json"),
            "objectives": [{"kind": "kl", "windows": text.model_dump(mode="json")} for text in texts],
        }
        return parse_sweep(settings)


def load_race(path: Path) -> Race:
    """Read a race from a YAML file; relative paths of models are looked for beside it first.

    Raises:
        ConfigError: unreadable, not YAML, an unknown key, or a value not allowed.
    """
    try:
        data = yaml.safe_load(read_text(path, ConfigError))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of keys to values")
    models = data.get("models")
    if isinstance(models, list):
        beside = [path.parent / str(model) for model in models]
        data["models"] = [
            str(own.resolve()) if own.exists() else model for own, model in zip(beside, models, strict=True)
        ]
    return validated(data, Race, str(path))


def cell_file(race: Race, model: str, seed: int, contender: str, store: Path) -> Path:
    """Return where the result of one run lies.

    Args:
        race: its settings.
        model: name of the model.
        seed: of text and samplers.
        contender: who runs.
        store: folder of the store.
    """
    left_out = {"models", "seeds", "contenders"} | ({"judge"} if race.judge is None else set())
    settings = race.model_dump(mode="json", exclude=left_out)
    return store / "races" / race.name / digest_of(settings)[:12] / model / f"{contender}-{seed}.json"
