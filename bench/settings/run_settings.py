"""Settings of a run, strict: an unknown key is an error with the closest match."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from bench.settings.recovery import RecoverySettings
from bench.settings.strict import Strict
from methods.framework.errors import ConfigError
from methods.framework.method import Method
from methods.registry import method

POCKET = "pocket"
"""Name of a task list: all tasks of the pocket language."""


class MethodConfig(Strict):
    """One method with its knobs."""

    name: str = Field(description="registry name")
    knobs: dict[str, Any] = Field(default_factory=dict, description="knobs that differ from the method's defaults")

    def configured(self) -> Method:
        """Return the method, or raise ConfigError with the closest match."""
        return method(self.name, **self.knobs)


class StepConfig(MethodConfig):
    """One step of a recipe: a method with its knobs, and where its statistics come from."""

    recalibrate: bool = Field(
        default=False,
        description="measure its statistics on what the steps before it leave, instead of slicing the source's",
    )


class RecipeConfig(Strict):
    """Methods that are applied one after the other, as one plan."""

    title: str = Field(min_length=1, description="name for tables")
    source: str = Field(default="", description="paper and table that the recipe follows")
    steps: tuple[StepConfig, ...] = Field(min_length=1, description="methods in their order")
    recovery: RecoverySettings | None = Field(default=None, description="training of the result; None: that of the run")


class Extended(Strict):
    """Settings with fields that came later: they are left out where they have their default, so that ids of earlier runs stay."""

    later: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _without_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        document: dict[str, Any] = handler(self)
        for name in self.later:
            if document.get(name) == type(self).model_fields[name].default:
                document.pop(name, None)
        return document


class CalibrationConfig(Extended):
    """What statistics are measured on."""

    later: ClassVar[tuple[str, ...]] = ("device",)

    corpus: str = Field(
        default="pocket", description="text file, datasets:NAME, pocket[:domain], or a file of token ids"
    )
    sequences: int = Field(default=128, ge=1, description="windows")
    length: int = Field(default=2048, ge=2, description="tokens in a window")
    seed: int = Field(default=0, ge=0, description="seed of the choice of windows")
    propagation: Literal["one_shot", "sequential"] = Field(default="one_shot", description="hidden states measured on")
    sampled_tokens: int = Field(
        default=4096, ge=1, description="tokens on which every expert runs, for statistics and methods that need it"
    )
    device: str = Field(
        default="auto",
        description="torch device of the statistics and of what is computed from them; auto takes the GPU where there is one",
    )


class EvaluationConfig(Strict):
    """What is scored, and how."""

    tasks: tuple[str, ...] = Field(default=(), description="lm-eval task names, or pocket; none scores nothing")
    include_path: Path | None = Field(default=None, description="folder of local task files")
    limit: int | None = Field(default=None, ge=1, description="first items of each task; None takes all")
    batch_size: int | None = Field(default=None, ge=1, description="sequences in a batch; None fills batches by tokens")
    num_fewshot: int | None = Field(default=None, ge=0, description="None: what the task says")
    max_length: int | None = Field(default=None, ge=2, description="context window in tokens; None: the model's")
    seed: int = Field(default=0, ge=0, description="seed of few-shot draws and bootstrap")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="compute type")
    device: str = Field(default="auto", description="torch device; auto takes the GPU where there is one")

    def expanded(self, store: Path) -> EvaluationConfig:
        """Return the settings with the task list ``pocket`` replaced by its tasks, which are written into the folder ``store``.

        A folder of local tasks of the user's own may hold a task of that name, so nothing is replaced where there is one.
        """
        if POCKET not in self.tasks or self.include_path is not None:
            return self
        from bench.pocket import TASKS, write_tasks

        tasks = tuple(task for name in self.tasks for task in (TASKS if name == POCKET else (name,)))
        return self.model_copy(update={"tasks": tasks, "include_path": write_tasks(store / "tasks")})


class TimingConfig(Extended):
    """How speed is measured under vLLM (see ``bench.timing.offline.TimingProtocol``)."""

    later: ClassVar[tuple[str, ...]] = ("kv_cache_bytes",)

    enabled: bool = True
    repeats: int = Field(default=5, ge=5, description="alternations of base and compressed model")
    extra: int = Field(default=10, ge=0, description="further alternations while the interval of a ratio is too wide")
    warmup: int = Field(default=1, ge=1, description="batches of each model that are run and not counted")
    batch: int | tuple[int, ...] = Field(
        default=4, description="sequences at once; several sizes as a list, the first one is the headline"
    )
    prompt: int = Field(default=128, ge=1, description="prompt tokens per sequence")
    generate: int = Field(default=32, ge=1, description="tokens generated per sequence after the first one")
    rounds: int = Field(default=1, ge=1, description="batches summed into one repeat")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="compute type")
    threads: int | None = Field(
        default=None, ge=1, description="OpenMP threads of the server, bound to as many cores; None: as set"
    )
    residency: Literal["both", "one"] = Field(default="both", description="one: a fresh process for each repeat")
    kv_cache_bytes: int | None = Field(default=None, ge=1, description="key-value cache; None: 256 MiB")

    @field_validator("batch")
    @classmethod
    def _sizes(cls, batch: int | tuple[int, ...]) -> int | tuple[int, ...]:
        sizes = (batch,) if isinstance(batch, int) else batch
        if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
            raise ValueError(f"batch sizes are at least 1, each given once, found {batch}")
        return batch


class RunConfig(Strict):
    """Everything that determines the results of ``moebench run``."""

    model: str = Field(description="folder, hub id or pocket model")
    revision: str | None = Field(default=None, description="hub revision")
    methods: tuple[MethodConfig, ...] = ()
    recipes: tuple[RecipeConfig, ...] = ()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    timing: TimingConfig = TimingConfig()
    recovery: RecoverySettings | None = Field(
        default=None, description="training of every compressed model; None: none"
    )
    target: Literal["vllm-cpu", "vllm-gpu", "transformers"] | None = Field(
        default=None,
        description="engine that must run the results: a plan that it cannot is refused before work is spent",
    )
    group: str = Field(default="run", description="label of runs that belong together")


def parse_method(text: str) -> MethodConfig:
    """Read ``name`` or ``name:knob=value,knob=value``; values are YAML, depth knots are written ``0.3/0.5/0.7``.

    Raises:
        ConfigError: a part without ``=``.
    """
    name, _, rest = text.partition(":")
    knobs: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        knob, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"method {text!r}: {part!r} is not of the form knob=value")
        knobs[knob.strip()] = parse_value(value)
    return MethodConfig(name=name.strip(), knobs=knobs)


def expand(methods: Sequence[MethodConfig], keeps: Sequence[float]) -> list[MethodConfig]:
    """Return every method at every share; a method that states its own ``keep`` stays as it is."""
    if not keeps:
        return list(methods)
    return [
        one
        for method_config in methods
        for one in (
            [method_config]
            if "keep" in method_config.knobs
            else [MethodConfig(name=method_config.name, knobs={**method_config.knobs, "keep": keep}) for keep in keeps]
        )
    ]


def parse_value(text: str) -> Any:
    """Read one knob's value: YAML scalar, numbers joined by ``/`` as knots, or a pattern such as ``2:4`` as it stands."""
    if ":" in text:
        return text  # YAML 1.1 takes 2:4 for a number to the base 60
    if "/" in text:
        try:
            return tuple(float(part) for part in text.split("/"))
        except ValueError:
            return text
    return yaml.safe_load(text)
