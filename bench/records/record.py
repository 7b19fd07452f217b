"""The record: everything known about one run, written once. Every table and figure is a function of records.

A record of the uncompressed model (``method`` None, plan identity) is the base that others are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.store.atomic import OTHER_STORE, atomic_file, explained
from methods.framework.errors import RecordError
from methods.framework.outside import an_object, read_json
from methods.framework.wording import wording

SCHEMA = 1
Status = Literal["complete", "refused", "failed", "cancelled"]
Mark = Literal["noisy", "drifting", "uneven", "correlated"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelInfo(_Part):
    """The model that was compressed."""

    name: str = Field(description="folder name or hub id, as shown in tables")
    family: str = Field(description="key of the family file")
    revision: str | None = Field(default=None, description="hub commit, where it came from the hub")
    content: str = Field(description="digest of the checkpoint's files")
    trust_remote_code: bool = Field(
        default=False, description="whether its tokenizer was allowed to run code of its own"
    )


class CorpusInfo(_Part):
    """The text that statistics were measured on."""

    name: str = Field(description="file, dataset or generator with its arguments")
    digest: str = Field(description="digest of the token ids")
    tokens: int = Field(description="tokens that pass the model")
    counted: int | None = Field(
        default=None, description="of them, tokens of answers, which statistics count alone; None: statistics count all"
    )
    sequences: int = Field(description="sequences measured")
    propagation: Literal["one_shot", "sequential"] = Field(description="hidden states: original, or after compression")
    opening: tuple[int, ...] = Field(default=(), description="token ids put at the start of every window")
    sources: dict[str, int] = Field(default={}, description="of a mixture: windows of each source")
    system_instruction: str | None = Field(default=None, description="the system's turn of conversations that had none")
    enable_thinking: bool | None = Field(default=None, description="the chat template's argument; None: left out")
    template_arguments: dict[str, Any] = Field(default={}, description="further arguments of the chat template")


class EvaluationInfo(_Part):
    """How a model was asked, and how it answered; what the tasks say themselves is in the digests of their scores."""

    dtype: str = Field(description="compute type")
    limit: int | None = Field(default=None, description="first items of each task; None: all")
    num_fewshot: int | None = Field(default=None, description="examples in the prompt; None: what each task says")
    max_length: int | None = Field(default=None, description="longest input in tokens; None: the model's own")
    chat_template: str | None = Field(
        default=None, description="SHA-256 of the template that made prompts conversations; None: asked as they are"
    )
    system_instruction: str | None = Field(default=None, description="the system's turn")
    fewshot_as_multiturn: bool = Field(default=False, description="whether examples were turns of their own")
    template_arguments: dict[str, Any] = Field(
        default={}, description="arguments of the template, thinking among them, by the names that it gives them"
    )
    generation_config: dict[str, Any] = Field(
        default={},
        description="what generation_config.json of the model says; transformers goes by it where nothing else does",
    )
    generation: dict[str, Any] = Field(default={}, description="settings of generation in place of the tasks' own")
    stop: tuple[str, ...] = Field(default=(), description="texts that end an answer, beside those of the tasks")
    think_end_token: str | None = Field(default=None, description="what ended the thinking that was not scored")


class CostInfo(_Part):
    """Sizes, counted from shapes (see ``methods.framework.cost.Cost``)."""

    experts: int = Field(description="routed experts of the whole model")
    channels: int = Field(description="hidden channels of all routed experts")
    routed_parameters: int = Field(description="weights of the routed experts")
    parameters: int = Field(description="all weights")
    active_parameters: int = Field(description="weights used for one token")
    bytes: int = Field(description="tensor bytes on disk")
    flops: int = Field(description="FLOPs of one 2048-token forward, batch 1")


class RatioInfo(_Part):
    """Fractions removed, 0 to 1, one for each meaning in the literature (see ``methods.framework.cost.Ratios``)."""

    count: float = Field(description="of routed experts")
    expert: float = Field(description="of routed-expert parameters")
    total: float = Field(description="of all parameters")
    bytes: float = Field(description="of bytes on disk")
    channels: float = Field(description="of routed experts' channels")
    zeros: float = Field(
        default=0.0,
        description="share of the stored routed-expert weights that a plan makes zero; no bytes fall with it",
    )


class SimilarityInfo(_Part):
    """How alike the routed experts of one layer are, by one statistic that compares every two of them."""

    statistic: str = Field(description="output_cka, output_cosine or weight_cka, see the catalogue of statistics")
    layer: int = Field(description="decoder layer of the source")
    experts: int = Field(description="routed experts of the layer")
    mean: float = Field(description="mean over all pairs of two experts")
    pairs: str | None = Field(
        default=None,
        description="hundredths of each pair, by spaces: experts 0 and 1, 0 and 2, ..., 1 and 2, ...; None where the layer has "
        "more experts than a figure shows",
    )


class Paired(_Part):
    """Comparison with the base on the same items."""

    difference: float = Field(description="score minus the base's score, in the metric's unit")
    low: float = Field(description="lower end of the 95 % interval of the difference")
    high: float = Field(description="upper end of the 95 % interval of the difference")
    stderr: float | None = Field(
        default=None,
        description="standard error of the difference, never 0 for 0/1 items; None in records of earlier versions",
    )
    p: float = Field(description="p-value of no difference: exact McNemar for 0/1 items, else paired bootstrap")
    test: Literal["mcnemar", "bootstrap"] = Field(description="which test gave p")
    interval: Literal["score", "joined", "bootstrap", "percentile"] = Field(
        default="percentile",
        description="how the interval was made: for 0/1 items by score and adjusted Wald, for others (joined) by an expanded "
        "bootstrap and a t interval without its skewness; bootstrap: the former alone, of earlier versions; "
        "percentile: by the plain bootstrap of earlier versions, too short for rare changes",
    )


class Score(_Part):
    """One metric of one task."""

    task: str = Field(description="lm-eval task name")
    metric: str = Field(
        description="lm-eval metric name without filter: acc, acc_norm, exact_match, word_perplexity, ..."
    )
    filter: str = Field(default="none", description="lm-eval filter name")
    value: float = Field(description="score in the metric's unit")
    stderr: float | None = Field(
        description="standard error, None where there is none; perplexities by the delta method"
    )
    n: int = Field(description="items scored")
    higher_is_better: bool = Field(description="direction of the metric")
    version: str = Field(description="lm-eval task version")
    digest: str = Field(description="digest of task definition, items and settings")
    dataset: str | None = Field(
        default=None, description="data set of the hub that the items come from; None: not from the hub, or not known"
    )
    subset: str | None = Field(default=None, description="configuration of that data set, where it has several")
    paired: Paired | None = Field(default=None, description="comparison with the base; None for the base itself")


class Interval(_Part):
    """Median of repeats with an interval."""

    median: float = Field(description="median of the repeats")
    low: float = Field(description="lower end of the 95 % interval of the median")
    high: float = Field(description="upper end of the 95 % interval of the median")
    n: int = Field(description="repeats")


class BatchTiming(_Part):
    """Speed of one model at one batch size, without a server."""

    batch: int = Field(description="sequences at once")
    prefill: Interval = Field(description="prompt tokens per second")
    decode: Interval = Field(description="generated tokens per second")
    prefill_ratio: Interval | None = Field(default=None, description="prefill speed over the base's, pair by pair")
    decode_ratio: Interval | None = Field(default=None, description="decode speed over the base's, pair by pair")
    drift: float | None = Field(
        default=None, description="share by which the base's seconds changed from the first pair to the last"
    )
    cpu_share: tuple[float, float] | None = Field(
        default=None, description="CPU seconds per wall second of the base's and of this model's process"
    )
    marks: tuple[Mark, ...] = Field(default=(), description="why the ratios deserve doubt; see docs/timing.md")
    seconds: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="every repeat: wall and CPU seconds of both phases, and when it began"
    )


class OnlineTiming(_Part):
    """A server of one model at one request rate, as ``vllm bench serve`` measures it.

    Metrics are ``request_throughput`` (requests/s), ``ttft_median_ms`` and ``ttft_p99_ms`` (time to first token),
    ``itl_median_ms`` and ``itl_p99_ms`` (time between tokens), all in milliseconds but the first.
    """

    rate: float | None = Field(description="requests per second that were sent; None: all at once")
    requests: int = Field(description="requests of each repeat")
    metrics: dict[str, Interval] = Field(description="each metric over the repeats")
    ratios: dict[str, Interval] = Field(
        default_factory=dict, description="each metric over the base's, repeat by repeat; empty for the base"
    )
    drift: dict[str, float] = Field(
        default_factory=dict, description="share by which the base's metric changed from the first repeat to the last"
    )
    marks: dict[str, tuple[Mark, ...]] = Field(
        default_factory=dict, description="metrics whose ratio deserves doubt, and why; see docs/timing.md"
    )
    values: dict[str, tuple[float, ...]] = Field(
        default_factory=dict, description="every repeat of every metric, and the seconds at which it began (at)"
    )


class Timing(_Part):
    """Speed and memory under vLLM, base and compressed model in alternation; or the reason why there is none.

    The speeds beside ``batches`` are those of the first batch size.
    """

    reason: str | None = Field(default=None, description="why nothing was timed; all numbers are None then")
    prefill: Interval | None = Field(default=None, description="prompt tokens per second")
    decode: Interval | None = Field(default=None, description="generated tokens per second")
    prefill_ratio: Interval | None = Field(default=None, description="prefill speed over the base's, pair by pair")
    decode_ratio: Interval | None = Field(default=None, description="decode speed over the base's, pair by pair")
    weights_bytes: int | None = Field(default=None, description="safetensors files on disk, bytes")
    peak_bytes: int | None = Field(
        default=None, description="peak memory of the serving process (device memory on GPU)"
    )
    parameter_bytes: int | None = Field(
        default=None, description="weights in memory as vLLM's model runner measures them, else all parameters; bytes"
    )
    kv_tokens: int | None = Field(
        default=None, description="tokens that fit the key-value cache of the protocol's size"
    )
    marks: tuple[Mark, ...] = Field(default=(), description="marks of the first batch size; see docs/timing.md")
    batches: tuple[BatchTiming, ...] = Field(default=(), description="every batch size that was timed")
    online: tuple[OnlineTiming, ...] = Field(default=(), description="every request rate that was timed")
    realisation: str | None = Field(
        default=None,
        description="compressed, or dense: the values are de-quantised (or zeros stored) so that no speed is claimed",
    )
    protocol: dict[str, Any] = Field(
        default_factory=dict, description="batch, lengths, repeats, engine, threads, dtype"
    )


class RecoveryInfo(_Part):
    """Training of a compressed checkpoint, after which it was scored."""

    kind: Literal["lora", "full", "router_kd", "expert_kd"] = Field(description="what was trained, and on what")
    settings: dict[str, Any] = Field(description="resolved settings")
    corpus: str = Field(description="text, by name")
    corpus_digest: str = Field(description="digest of its token ids")
    tokens: int = Field(description="tokens trained on, repetitions counted")
    steps: int = Field(description="steps of the optimiser")
    trained_parameters: int = Field(description="weights that were moved; of LoRA those of the adapters")
    seconds: float = Field(description="CPU seconds of the training, whenever it was made")
    wall: float = Field(description="its seconds by the clock")
    losses: tuple[float, float] = Field(description="mean loss of the first and of the last tenth of the steps")


class TargetInfo(_Part):
    """What was known beforehand about the engine that is to run the result."""

    name: str = Field(description="engine and device")
    outcome: Literal["served", "dense", "refused"] = Field(
        description="served as it is stored; dense: with values or zeros in its place, so no speed is claimed; refused"
    )
    reason: str | None = Field(default=None, description="why it is refused, or dense")
    notes: tuple[str, ...] = Field(default=(), description="what nobody has tried")


class FoundBy(_Part):
    """The study that found a plan."""

    study: str = Field(description="name of the sweep")
    trial: int | None = Field(default=None, description="number of its trial; None where no trial stands for the plan")
    scores: dict[str, float] = Field(default={}, description="value of each objective in the search, by name")
    budget: dict[str, float] = Field(
        default={}, description="limits that the search kept, as shares of the source's, by what is limited"
    )


class Environment(_Part):
    """Where and with what the run was made."""

    commit: str | None = Field(description="git commit of moebench, None outside a checkout")
    dirty: bool | None = Field(description="whether the checkout had uncommitted changes")
    versions: dict[str, str] = Field(description="package versions that can change numbers")
    device: str = Field(description="processor or GPU name")
    threads: int = Field(description="torch intra-op threads")


class Record(_Part):
    """One run."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="version of this schema")
    id: str = Field(description="digest of everything that determines the run, 16 hexadecimal digits")
    group: str = Field(description="runs that belong together (demo, a study, ...)")
    status: Status
    reason: str | None = Field(default=None, description="why the run was refused, failed or cancelled")
    created: str = Field(description="UTC time of the end of the run, ISO 8601")
    model: ModelInfo
    corpus: CorpusInfo | None = Field(default=None, description="None where the method needs no tokens")
    method: str | None = Field(description="registry name, recipe, or plan (of a file); None for the base")
    title: str = Field(description="method's name for tables")
    knobs: dict[str, Any] = Field(description="resolved settings of the method")
    stages: tuple[str, ...] | None = Field(
        default=None,
        description="plan stages that the method writes, in the order in which they are applied; None in records of versions "
        "that did not tell (see ``bench.records.earlier``)",
    )
    plan: str | None = Field(default=None, description="digest of the plan")
    found_by: FoundBy | None = Field(
        default=None, description="None where no study found the plan, as in earlier records"
    )
    cost: CostInfo | None = None
    ratios: RatioInfo | None = None
    cold_experts: int | None = Field(
        default=None,
        description="experts that were made from their weights alone, since no calibration token reached them; None where no "
        "moments were asked for",
    )
    similarity: tuple[SimilarityInfo, ...] = Field(
        default=(),
        description="of the source's experts, layer by layer, by each such statistic that the method reads; else empty",
    )
    groups: dict[int, tuple[int, ...]] = Field(
        default={},
        description="of each layer with merged experts: how many of the source's experts each expert stands for, descending",
    )
    replaced: int = Field(default=0, description="experts of the source that a constant vector stands for")
    target: TargetInfo | None = Field(default=None, description="None where none was asked for")
    recovery: RecoveryInfo | None = Field(default=None, description="training after compression; None: there was none")
    realisation: str | None = Field(default=None, description="how the compressed form was run for quality")
    evaluation: EvaluationInfo | None = Field(
        default=None, description="None where nothing was scored, and in records of versions that did not tell"
    )
    scores: tuple[Score, ...] = ()
    timing: Timing | None = None
    seconds: dict[str, float] = Field(
        default_factory=dict, description="CPU seconds of each stage run here, not cached"
    )
    seeds: dict[str, int] = Field(default_factory=dict, description="every seed by purpose")
    environment: Environment | None = None


def write_record(record: Record, folder: Path) -> Path:
    """Write ``record`` as ``folder/<id>.json`` in one atomic step and return the path.

    Raises:
        RecordError: a record of that id exists (records are write-once), or the disk refuses.
    """
    path = folder / f"{record.id}.json"
    text = json.dumps(record.model_dump(mode="json", by_alias=True), indent=2, sort_keys=True) + "\n"
    with explained(path, RecordError, OTHER_STORE):
        try:
            with atomic_file(path, once=True) as file:
                file.write(text.encode())
        except FileExistsError:
            raise RecordError(f"{path} exists and records are write-once; remove it to measure again") from None
    return path


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: unreadable, or not of this schema.
    """
    document = an_object(read_json(path, RecordError, infinite=True), str(path), RecordError)
    try:
        return Record.model_validate(document)
    except ValidationError as error:
        raise RecordError(f"{path} is not a record of schema {SCHEMA}: {wording(error, document)}") from error


def read_records(folder: Path) -> Iterator[Record]:
    """Yield all records in ``folder``, sorted by file name."""
    for path in sorted(folder.glob("*.json")):
        yield read_record(path)
