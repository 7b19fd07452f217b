"""The file of a sweep: strict, typed, and checked against the method before anything is measured."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from functools import cache, partial, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from bench.settings.stage_settings import TRUST, CalibrationConfig
from bench.settings.strict import Extended
from methods.framework.errors import ConfigError
from methods.framework.outside import parse_json, read_text
from methods.framework.wording import wording
from sweeps.budget import Budget, budget_misfit
from sweeps.executor import Executor, parse_executor
from sweeps.executors.local import Local
from sweeps.final_settings import Final
from sweeps.latency import MICROSECONDS, Latency
from sweeps.objective import Objective, TextObjective, kinds
from sweeps.promotion import Promotion, filled
from sweeps.pruning_settings import Stages
from sweeps.samplers.settings import LEVELLED, SINGLE, Sampler
from sweeps.space.dimension import Dimension, Knots, Layers, Range, own_space
from sweeps.space.statements import step_class, step_names
from sweeps.space.step import SearchStep, check_knobs, with_own
from sweeps.starts import Starts
from sweeps.storage_url import check_storage

CONFIG = "config.json"
"""File of a resolved configuration in the folder of its study."""

_LONGEST = 16 << 20
"""Bytes of the longest file of settings."""


def _objectives(value: Any) -> tuple[Objective, ...]:
    """Check each objective against the settings of its kind."""
    return _adapter(kinds()).validate_python(value)


@cache
def _adapter(known: tuple[type[Objective], ...]) -> TypeAdapter[tuple[Objective, ...]]:
    """Return the check of objectives of the kinds ``known``, which a type checker cannot see."""
    one: Any = Annotated[reduce(or_, known), Field(discriminator="kind")]
    return TypeAdapter(Annotated[tuple[one, ...], Field(min_length=1)])


def _several(value: Any) -> Any:
    """Read one budget, none, or a list of them."""
    return () if value is None else value if isinstance(value, (list, tuple)) else (value,)


class SweepConfig(Extended):
    """A whole sweep."""

    later: ClassVar[tuple[str, ...]] = ("trust_remote_code", "latency", "stages")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the study and of its folder")
    model: str = Field(description="folder or hub id")
    revision: str | None = Field(default=None, description="hub branch, tag or commit")
    trust_remote_code: bool = Field(default=False, description=TRUST)
    method: str | None = Field(default=None, description="name of the one step (see recipe)")
    fixed: dict[str, Any] = Field(default_factory=dict, description="its knobs that are not searched")
    space: dict[str, Dimension] = Field(
        default_factory=dict, description="its searched knobs; empty: the method's own space"
    )
    recipe: tuple[SearchStep, ...] = Field(
        default=(), description="steps that are searched together, instead of `method`"
    )
    budget: Annotated[tuple[Budget, ...], BeforeValidator(_several)] = Field(
        default=(), description="limit on the size of the result, or several"
    )
    latency: Latency | None = Field(
        default=None, description="requests whose time is measured; null: none, unless a budget or an objective is one"
    )
    objectives: Annotated[tuple[SerializeAsAny[Objective], ...], BeforeValidator(_objectives)] = Field(
        description="one: a best trial; several: a Pareto front"
    )
    calibration: CalibrationConfig = Field(
        default=CalibrationConfig(), description="statistics, measured once on the original model for all trials"
    )
    sampler: Sampler = Sampler()
    starts: Starts = Starts()
    stages: Stages | None = Field(
        default=None,
        description="windows of the objective after which a pruner may end a trial; null: all are measured",
    )
    final: Final = Final()
    trials: int = Field(default=50, ge=1, description="complete trials to reach")
    jobs: int = Field(default=1, ge=1, le=256, description="worker processes, each with a resident model")
    executor: Annotated[SerializeAsAny[Executor], BeforeValidator(parse_executor)] = Field(
        default_factory=Local, description="where workers run: a name, or a name and settings"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="of the resident model")
    device: str = Field(default="auto", description="of the resident model: auto, cpu, cuda, cuda:1, ...")
    batch_size: int = Field(default=8, ge=1, description="sequences evaluated at once")
    include_path: str | None = Field(default=None, description="folder with the YAML of local lm-eval tasks")
    report: tuple[str, ...] = Field(default=(), description="tasks that the winners will be reported on")
    allow_test_objective: bool = Field(default=False, description="accept an objective on tasks that are also reported")
    promote: Promotion | None = Field(default=None, description="ordinary runs of the front, when the search is over")
    storage: Annotated[str, AfterValidator(check_storage)] | None = Field(
        default=None,
        description="where trials are kept: postgresql://..., grpc://HOST:PORT, or $NAME of a variable that holds one; "
        "null: a journal file in the store",
    )
    stale_after: float = Field(
        default=60.0, ge=1, description="seconds without a sign of life until the trial of another host counts as lost"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_space(cls, data: Any) -> Any:
        """Replace ``auto`` by the method's own dimension."""
        if not isinstance(data, Mapping) or not isinstance(data.get("method"), str):
            return data
        method, fixed = data["method"], data.get("fixed") or {}
        asked = data.get("space")
        if not asked and method in step_names():
            asked = {name: "auto" for name in own_space(step_class(method)) if name not in fixed}
        return {**data, "space": with_own(method, asked or {})} if isinstance(asked, Mapping | None) else data

    @model_validator(mode="before")
    @classmethod
    def _promoted_as_studied(cls, data: Any) -> Any:
        """Give the evaluation of the front what the study says of it."""
        if not isinstance(data, Mapping) or not isinstance(data.get("promote"), Mapping):
            return data
        return {**data, "promote": filled(data["promote"], data)}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.calibration.propagation != "one_shot":
            raise ValueError(
                "calibration.propagation: all trials share one set of statistics, those of the original model; "
                "use one_shot"
            )
        if (self.method is None) == (not self.recipe):
            raise ValueError("name either a method or a recipe of steps")
        if self.recipe and (self.fixed or self.space):
            raise ValueError("fixed and space belong to each step of the recipe")
        if self.method is not None:
            check_knobs(step_class(self.method), self.fixed, self.space)
        steps = self.steps
        if reason := budget_misfit(self.budget, [step.kind for step in steps]):
            raise ValueError(f"budget: {reason}")
        if not any(step.space for step in steps):
            raise ValueError("space is empty, so there is nothing to search")
        if self.final.choose is not None:
            if len(self.objectives) > 1 or not isinstance(self.objectives[0], TextObjective):
                raise ValueError("final.choose compares trials by one objective on text: nll, perplexity, kl or esap")
            texts = (self.final.choose, self.final.report, self.objectives[0].held_out)
            if len({text for text in texts if text is not None}) < sum(text is not None for text in texts):
                raise ValueError(
                    "final: choose, report and the objective need windows of their own, of another seed or corpus"
                )
        if self.timed is not None and not self.layered:
            raise ValueError(
                "milliseconds are measured for options of layers; give a knob `by: layer` or `by: matrix`, or limit flops"
            )
        if self.starts.studies and not self.layered:
            raise ValueError("starts.studies needs a knob with `by: layer` or `by: matrix`, as all starts do")
        if self.stages is not None:
            self.stages.check(self.objectives)
        name = self.sampler.name
        if name in SINGLE and len(self.objectives) > 1:
            raise ValueError(f"sampler {name} has a single objective; use nsga2 or tpe for several")
        if name in LEVELLED and not self.layered:
            raise ValueError(f"sampler {name} needs a knob with `by: layer` or `by: matrix`; use tpe for others")
        if name == "cmaes":
            kinds = (Range, Knots, Layers)
            if not any(isinstance(dimension, kinds) for step in steps for dimension in step.space.values()):
                raise ValueError("sampler cmaes needs at least one numeric knob; use tpe for choices")
        return self

    @property
    def steps(self) -> tuple[SearchStep, ...]:
        """The steps; a method alone is a recipe of one."""
        one = {"method": str(self.method), "fixed": self.fixed, "space": self.space}
        return self.recipe or (SearchStep.model_construct(**one),)  # type: ignore[arg-type]  # checked with the whole

    @property
    def title(self) -> str:
        """The methods in their order, for people."""
        return " + ".join(step.method for step in self.steps)

    @property
    def rule(self) -> str:
        """The methods' titles in their order, for tables."""
        return " + ".join(step.kind.title for step in self.steps)

    @property
    def layered(self) -> bool:
        """Whether a knob has a value for each layer."""
        return any(step.layered for step in self.steps)

    @property
    def timed(self) -> Latency | None:
        """The requests whose time is measured; None where nothing asks for times."""
        asked = [budget.of for budget in self.budget] + [str(getattr(one, "of", "")) for one in self.objectives]
        return self.latency or (Latency() if MICROSECONDS.keys() & set(asked) else None)

    @property
    def proposer(self) -> Sampler:
        """The sampler, with ``auto`` resolved to what wins the races of docs/search.md."""
        if self.sampler.name != "auto":
            return self.sampler
        local = self.layered and len(self.objectives) == 1
        return self.sampler.model_copy(update={"name": "local" if local else "tpe"})

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the objectives, as in ``trials.csv``; distinct."""
        return tuple(self.labelled)

    @property
    def labelled(self) -> dict[str, Objective]:
        """The objectives by name."""
        found: dict[str, Objective] = {}
        for objective in self.objectives:
            label = objective.label
            found[label if label not in found else f"{label}_{len(found)}"] = objective
        return found

    @property
    def directions(self) -> tuple[Literal["minimize", "maximize"], ...]:
        """Direction of each objective, in Optuna's words."""
        return tuple(objective.direction for objective in self.objectives)

    def folder(self, store: Path) -> Path:
        """Return where the sweep keeps its files."""
        return store / "sweeps" / self.name

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same for trials to be comparable: everything but extent and machine."""
        machine = {"jobs", "executor", "device", "batch_size", "stale_after", "storage"}
        after = {"report", "allow_test_objective", "promote"}
        return self.model_dump(mode="json", exclude={"trials", *machine, *after})


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice, which would silently win over the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of ``node``."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := sorted({str(key) for key in keys if keys.count(key) > 1}):
            raise ConfigError(f"line {node.start_mark.line + 1}: key {', '.join(twice)} is written twice")
        return super().construct_mapping(node, deep=deep)


def _from_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader, which builds plain values only


def load_sweep(path: Path) -> SweepConfig:
    """Read a sweep from a YAML, TOML or JSON file; relative paths in it are looked for beside it first.

    Raises:
        ConfigError: unreadable, not of its format, an unknown key (with the closest one), or a value not allowed.
    """
    text = read_text(path, ConfigError, longest=_LONGEST)
    try:
        # As YAML, JSON's 1e-05 would be a string.
        readers: dict[str, Callable[[str], Any]] = {
            ".toml": tomllib.loads,
            ".json": partial(parse_json, what=str(path), kind=ConfigError),
        }
        read = readers.get(path.suffix, _from_yaml)
        data = read(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # TypeError: a key that is a list; ValueError: PyYAML lets impossible dates and numbers through to Python's.
        kind = path.suffix.removeprefix(".").upper() if path.suffix in (".toml", ".json") else "YAML"
        raise ConfigError(f"{path} is not {kind}: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of keys to values")
    return parse_sweep(data, str(path), path.parent)


def _beside(data: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return settings in which paths that exist beside their file are absolute."""
    found = dict(data)
    for key in ("model", "include_path"):
        value = data.get(key)
        if folder is not None and isinstance(value, str) and (folder / value).exists():
            found[key] = str((folder / value).resolve())
    for key in ("promote", "evaluation"):
        if isinstance(data.get(key), Mapping):
            found[key] = _beside(data[key], folder)
    return found


def parse_sweep(data: Mapping[str, Any], where: str = "sweep", folder: Path | None = None) -> SweepConfig:
    """Return the checked configuration of a mapping.

    Args:
        data: the settings.
        where: name of the file, for messages.
        folder: where relative paths are looked for first, None for nowhere.

    Raises:
        ConfigError: with the key and the reason; only the first problem is told.
    """
    try:
        return SweepConfig.model_validate(_beside(data, folder))
    except ValidationError as error:
        raise ConfigError(f"{where}: {wording(error, data)}") from error
