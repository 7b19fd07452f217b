"""Statistics and probes for the methods of a run, each measured once, when first asked for.

What lies in files is measured once for all of them only where it is kept; else each method has a pass of its own, in which it
goes with its layer.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from bench.calibration.conditions import Effort
from bench.calibration.passing import calibrate_passing
from bench.calibration.passing_stats import PassingStats, passing_names
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.device import resolved_device
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from bench.text.corpus import Corpus, parse
from bench.text.template import Talk
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import INSIDE
from methods.framework.method import LayerwiseMethod, Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import CATALOGUE, Stats

KEPT_BYTES = 1 << 30
"""Most bytes of statistics in files that are kept for a whole run, unless it asks for another way."""


_PROPAGATED = frozenset({"channels", "sparsity", "bits"})
"""Changes inside experts that a running layer can have."""


class Measured(Protocol):
    """A method or a recipe, as far as measuring for it goes."""

    @property
    def name(self) -> str:
        """Registry name."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that it reads."""
        ...

    @property
    def measured(self) -> frozenset[str]:
        """Statistics that it reads or writes."""
        ...

    @property
    def anew(self) -> bool:
        """Whether some of its steps measure what steps before them leave."""
        ...

    @property
    def probing(self) -> bool:
        """Whether it has to run the model."""
        ...


class Calibrator:
    """Measures what methods need: one pass for all one-shot methods of a run, one each for sequential ones."""

    def __init__(self, checkpoint: Checkpoint, config: CalibrationConfig, store: Store, needs: frozenset[str]) -> None:
        """Prepare to measure when first asked.

        Args:
            checkpoint: the model.
            config: corpus, device and what else the values depend on.
            store: keeps what was measured.
            needs: names of statistics, the union over the methods of the run.
        """
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

    def corpus_for(self, method: Measured) -> Corpus | None:
        """Return the corpus, or None where the method reads weights alone."""
        if not method.probing and all(CATALOGUE[name].cost == "weights" for name in method.measured):
            return None
        if self._corpus is None:
            config = self._config
            self._corpus = parse(
                config.corpus,
                self._checkpoint,
                config.sequences,
                config.length,
                config.seed,
                config.bos,
                config.answers_only,
                talk=Talk.of(config),
            )
        return self._corpus

    def check(self, method: Measured, needs: frozenset[str]) -> None:
        """Refuse what is known not to work before anything is measured.

        Raises:
            RefusedError: sequential propagation for a method that does not decide layer by layer, or a method that runs the
                model where only some tokens count.
            MoebenchError: ``needs`` cannot be measured on this model and corpus.
        """
        from bench.calibration.inputs import WHOLE_TEXT, check_inputs

        corpus = self.corpus_for(method)
        check_inputs(self._checkpoint.inventory, corpus, needs)
        if corpus is not None:
            self._check_propagation(method)
        if corpus is not None and corpus.marks is not None and method.probing:
            raise RefusedError(f"{method.name} {WHOLE_TEXT}")

    def _check_propagation(self, method: Measured) -> None:
        if self._config.propagation == "one_shot":
            return
        if method.probing:
            raise RefusedError(
                f"{method.name} runs the model itself, so propagation='sequential' has no meaning for it"
            )
        if not isinstance(method, LayerwiseMethod):
            raise RefusedError(
                f"{method.name} looks at all layers at once, so propagation='sequential' has no meaning for it"
            )
        if not (INSIDE - _PROPAGATED).isdisjoint(method.stages):
            raise RefusedError(
                f"{method.name} changes experts inside in a way that sequential propagation is not built for; it is for cut "
                "channels, zeros and few bits; use one_shot"
            )
        if getattr(method, "scope", "experts") == "all":
            raise RefusedError(
                f"{method.name} changes attention and other linear layers too, and sequential propagation is built for routed "
                "experts; use scope=experts or one_shot"
            )

    @cached_property
    def by_layer(self) -> bool:
        """Whether statistics that lie in files go with their layer."""
        if self._config.moments != "auto":
            return self._config.moments == "by_layer"
        from bench.calibration.sums.disk_array import disk_bytes

        return disk_bytes(self._checkpoint.inventory, self._needs, self._config.sampled_tokens) > KEPT_BYTES

    def stats_for(self, method: Measured, progress: Any = None) -> Stats:
        """Return the statistics for ``method``, without those that go with their layer and that it only writes.

        Raises:
            RefusedError: sequential propagation for a method that does not decide layer by layer.
        """
        from bench.applying.while_measuring import MakingExperts
        from bench.calibration.calibrate import calibrate
        from bench.calibration.decide import LayerwiseDecision

        corpus = self.corpus_for(method)
        if corpus is None:
            return calibrate(
                self._checkpoint, None, method.measured, cache=self._cache, device=self.device, progress=progress
            )
        decide, needs = None, self._needs
        if self._config.propagation == "sequential":
            self._check_propagation(method)
            assert isinstance(method, LayerwiseMethod)
            inside = not (INSIDE - {"channels"}).isdisjoint(method.stages)
            making = MakingExperts(self._checkpoint, self.device) if inside else None
            decide, needs = LayerwiseDecision(method, self._checkpoint.inventory, making), method.measured
        elif self.by_layer and not method.anew:
            read = passing_names(method.needs)
            if read and isinstance(method, LayerwiseMethod):
                return self._passing(method.needs, corpus, progress)
            needs = (needs - passing_names(needs)) | read
        if not needs:
            return Stats({})
        return calibrate(
            self._checkpoint,
            corpus,
            needs,
            decide=decide,
            cache=self._cache,
            device=self.device,
            sampled_tokens=self._config.sampled_tokens,
            effort=self._effort,
            progress=progress,
        )

    def moments_for(self, plan: Plan, method: Measured, stats: Stats, progress: Any = None) -> Stats:
        """Return the statistics that ``plan`` writes from.

        Args:
            plan: in the coordinates of the model.
            method: what decided it.
            stats: what ``stats_for`` returned for it, or those that it measured itself.
            progress: called after each decoder layer, once tensors are written from statistics that are measured only then.
        """
        missing = passing_names(plan.moments - stats.values.keys())
        corpus = self.corpus_for(method)
        if not missing or corpus is None:
            return stats
        return self._passing(plan.moments, corpus, progress)

    def _passing(self, names: frozenset[str], corpus: Corpus, progress: Any) -> PassingStats:
        return calibrate_passing(
            self._checkpoint,
            corpus,
            names,
            cache=self._cache,
            device=self.device,
            sampled_tokens=self._config.sampled_tokens,
            effort=self._effort,
            progress=progress,
        )

    @property
    def _cache(self) -> Path:
        return self._store.cache / "stats"

    @property
    def _effort(self) -> Effort:
        config = self._config
        return Effort(hidden_bytes=config.hidden_mib << 20, rounded_states=config.states == "bfloat16")

    def probe_for(self, method: Method) -> Probe | None:
        """Return the running model for a method that asks for it, else None; made once, on the calibration corpus."""
        if not method.probing:
            return None
        self._check_propagation(method)
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
