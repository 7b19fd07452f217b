"""Statistics and probes for the methods of a run, each measured once, when first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

from bench.checkpoint.checkpoint import Checkpoint
from bench.models.device import resolved_device
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from bench.text.corpus import Corpus, parse
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import INSIDE
from methods.framework.method import LayerwiseMethod, Method
from methods.framework.probe import Probe
from methods.framework.stats import CATALOGUE, Stats


class Measured(Protocol):
    """A method or a recipe, as far as measuring for it goes."""

    @property
    def name(self) -> str:
        """Registry name."""
        ...

    @property
    def measured(self) -> frozenset[str]:
        """Statistics that it reads or writes."""
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
        if not (INSIDE - {"channels"}).isdisjoint(method.stages):
            raise RefusedError(
                f"{method.name} changes experts inside from moments of the original states; sequential propagation of such "
                "experts is not built"
            )

    def stats_for(self, method: Measured, progress: Any = None) -> Stats:
        """Return the statistics for ``method``.

        Raises:
            RefusedError: sequential propagation for a method that does not decide layer by layer.
        """
        from bench.calibration.calibrate import calibrate
        from bench.calibration.decide import LayerwiseDecision

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
        self._check_propagation(method)
        assert isinstance(method, LayerwiseMethod)
        decide = LayerwiseDecision(method, self._checkpoint.inventory)
        return calibrate(
            self._checkpoint,
            corpus,
            method.measured,
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
