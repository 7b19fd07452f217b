"""Settings of a grid, and the runs that they expand to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from bench.records.run_contents import setting
from bench.settings.method_settings import MethodConfig, RecipeConfig, expand, parse_method
from bench.settings.mixture import CorpusLine
from bench.settings.named_values import NamedValues
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import ARGUMENTS, POCKET, THINKS, TRUST, Bos, CalibrationConfig, EvaluationConfig
from bench.settings.strict import Strict, load_settings, read_settings
from bench.settings.timing_settings import TimingConfig
from bench.store.store import digest_of
from methods.framework.method import Method, Share
from methods.framework.stats import CATALOGUE
from sweeps.executor import Executor, parse_executor
from sweeps.executors.local import Local


def _method(value: Any) -> Any:
    return parse_method(value) if isinstance(value, str) else value


def _recipe(value: Any) -> Any:
    return read_settings(Path(value)) if isinstance(value, str | Path) else value


class GridCalibration(Strict):
    """The texts that statistics are measured on: every corpus with every seed."""

    corpora: tuple[CorpusLine, ...] = Field(default=("pocket",), min_length=1, description="as `moebench run --corpus`")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1, description="of the windows")
    sequences: int = Field(default=128, ge=1, description="windows")
    length: int = Field(default=2048, ge=2, description="tokens in a window")
    bos: Bos = Field(default="as evaluated", description="as `moebench run --bos`")
    answers_only: bool = Field(default=False, description="as `moebench run --answers-only`")
    system_instruction: str | None = Field(
        default=None, description="the system's turn of conversations that have none"
    )
    enable_thinking: bool | None = Field(default=None, description=THINKS)
    template_arguments: NamedValues = Field(default=(), description=ARGUMENTS)
    propagation: Literal["one_shot", "sequential"] = Field(default="one_shot", description="hidden states measured on")
    device: str = Field(default="auto", description="torch device; auto takes the GPU where there is one")


class GridConfig(Strict):
    """Every model by every method, share, corpus and seed."""

    models: tuple[str, ...] = Field(min_length=1, description="folders, hub ids[@revision] or names of pocket models")
    revision: str | None = Field(default=None, description="hub branch, tag or commit of every model")
    trust_remote_code: bool = Field(default=False, description=TRUST)
    methods: tuple[Annotated[MethodConfig, BeforeValidator(_method)], ...] = Field(
        default=(), description="name, name:knob=value,..., or name and knobs"
    )
    recipes: tuple[Annotated[RecipeConfig, BeforeValidator(_recipe)], ...] = Field(
        default=(), description="files of recipes, or what they hold"
    )
    recoveries: tuple[RecoverySettings | None, ...] = Field(
        default=(None,), min_length=1, description="trainings of every compressed model, each for itself; null is none"
    )
    keeps: tuple[Share, ...] = Field(default=(), description="shares; a method that states its own keep stays as it is")
    calibration: GridCalibration = GridCalibration()
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(tasks=(POCKET,)), description="tasks [pocket]: all tasks of the pocket language"
    )
    timing: TimingConfig = TimingConfig(enabled=False)
    group: str = Field(default="grid", description="label of runs that belong together")
    store: Path = Field(default=Path("runs"), description="folder of records and cached artefacts")
    workers: int = Field(default=1, ge=1, description="processes")
    threads: int = Field(default=1, ge=1, description="threads of each process")
    executor: Annotated[SerializeAsAny[Executor], BeforeValidator(parse_executor)] = Field(
        default_factory=Local, description="where the processes run: a name, or a name and settings"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, values in (
            ("models", self.models),
            ("keeps", self.keeps),
            ("calibration.corpora", self.calibration.corpora),
            ("calibration.seeds", self.calibration.seeds),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} states a value twice: {', '.join(map(str, values))}")
        if not self.methods and not self.recipes:
            raise ValueError("there is nothing to run; state methods, recipes, or both")
        if self.timing.enabled and self.workers > 1:
            raise ValueError(f"timing needs the machine to itself, found {self.workers} workers; allowed: workers: 1")
        return self


def load_grid(path: Path) -> GridConfig:
    """Read a grid's YAML file, and check its methods and knobs.

    Raises:
        ConfigError: what is wrong, with the closest match of an unknown name.
    """
    config = load_settings(path, GridConfig)
    for method in config.methods:
        method.configured()
    for recipe in config.recipes:
        for step in recipe.steps:
            step.configured()
    return config


@dataclass(frozen=True)
class Job:
    """What one process does at a time: one model, one corpus, one seed, several methods.

    Args:
        base: whether it measures the uncompressed model alone, which all other jobs of that model compare with.
    """

    config: RunConfig
    base: bool = False

    @property
    def runs(self) -> int:
        """Number of compressed models, or 1 for the base."""
        return len(self.config.methods) + len(self.config.recipes) or 1

    @property
    def label(self) -> str:
        """Model, corpus and seed in words."""
        calibration = self.config.calibration
        return self.config.model if self.base else f"{self.config.model}, {calibration.corpus}, seed {calibration.seed}"

    @property
    def rows(self) -> tuple[str, ...]:
        """What names each of its runs, however jobs are cut; in the order of a run's rows."""
        shared = self.config.model_dump(mode="json", include={"model", "calibration", "recovery"})
        own: list[MethodConfig | RecipeConfig | None] = [*self.config.methods, *self.config.recipes]
        return tuple(digest_of([shared, self.base, one and one.model_dump(mode="json")]) for one in own or [None])

    @property
    def settings(self) -> tuple[str, ...]:
        """Method and settings of each of its runs, in words."""
        if self.base:
            return ("base",)
        told = []
        for method in self.config.methods:
            made = method.configured()
            told.append(setting(method.name, made.title, made.knobs))
        told += [recipe.title for recipe in self.config.recipes]
        after = f" + {self.config.recovery.kind}" if self.config.recovery else ""
        return tuple(one + after for one in told)

    def document(self) -> dict[str, Any]:
        """Return the job as JSON values, for ``of``."""
        return {"config": self.config.model_dump(mode="json"), "base": self.base}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Job:
        """Read what ``document`` returned."""
        return cls(RunConfig.model_validate(document["config"]), document["base"])

    def split(self) -> list[Job]:
        """Return one job for each method and recipe."""
        alone: list[dict[str, Any]] = [{"methods": (method,), "recipes": ()} for method in self.config.methods]
        alone += [{"methods": (), "recipes": (recipe,)} for recipe in self.config.recipes]
        return [Job(self.config.model_copy(update=update)) for update in alone]


def jobs(config: GridConfig, store: Path) -> list[Job]:
    """Return the jobs of a grid: the bases first, then every model by corpus and seed.

    A method that reads no text is run with the first corpus only, and once unless it has a ``seed`` of its own; a
    ``seed`` that is not stated is the grid's.
    """
    evaluation = config.evaluation.expanded(store)
    settings = {
        "evaluation": evaluation,
        "timing": config.timing,
        "group": config.group,
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    found = [Job(RunConfig(model=model, **settings), base=True) for model in config.models]
    calibration = config.calibration
    for model in config.models:
        for corpus in calibration.corpora:
            for seed in calibration.seeds:
                first = (corpus == calibration.corpora[0], seed == calibration.seeds[0])
                methods = [one for method in config.methods for one in _seeded(method, seed, *first)]
                if not methods and not config.recipes:
                    continue
                own = CalibrationConfig(
                    corpus=corpus, seed=seed, **calibration.model_dump(exclude={"corpora", "seeds"})
                )
                chosen = {"methods": tuple(expand(methods, config.keeps)), "recipes": config.recipes}
                for recovery in config.recoveries:
                    run = RunConfig(model=model, calibration=own, recovery=recovery, **chosen, **settings)
                    found.append(Job(run))
    return found


def _seeded(method: MethodConfig, seed: int, first_corpus: bool, first_seed: bool) -> Sequence[MethodConfig]:
    """Return the method with the grid's seed, or nothing where the run would repeat an earlier one."""
    configured = method.configured()
    own = "seed" in type(configured).model_fields and "seed" not in method.knobs
    if not reads_text(configured) and not (first_corpus and (first_seed or own)):
        return ()
    return (MethodConfig(name=method.name, knobs={**method.knobs, "seed": seed}) if own else method,)


def reads_text(method: Method) -> bool:
    """Return whether what ``method`` makes depends on a calibration text."""
    return method.probing or any(CATALOGUE[name].cost != "weights" for name in method.measured)
