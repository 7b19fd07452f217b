"""What all trials of a sweep share: one model in memory, its statistics, and the windows that losses are taken on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bench.applying.made_experts import MadeExperts
from bench.settings.mixture import CorpusLine
from bench.settings.strict import Strict
from methods.framework.inventory import Inventory
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from sweeps.candidate import Candidate

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from bench.records.record import Score


class Windows(Strict):
    """Held-out text, in the spelling of the calibration."""

    corpus: CorpusLine = Field(description="text file, datasets:NAME, pocket[:domain], or a file of token ids")
    sequences: int = Field(default=16, ge=1, description="windows")
    length: int = Field(default=512, ge=2, description="tokens in a window")
    seed: int = Field(default=1, ge=0, description="seed of the choice of windows")


@dataclass(frozen=True)
class Resident:
    """A model under search.

    Args:
        inventory: of the source.
        model: the uncompressed model, on its device.
        stats: statistics for every trial.
        calibration: windows that the statistics were measured on, shape (N, S); empty where no objective reads them.
        identity: digests of the model and of the windows; a study is bound to them.
        windows: returns held-out windows, shape (N, S).
        tokenizer: loads the tokenizer, which only task objectives need.
        probe: makes the probe of the model, which only some methods ask for.
        batch_size: sequences evaluated at once.
        include_path: folder of local lm-eval tasks.
        cache: folder of finished task scores.
        made: experts that were changed inside for a trial, and serve the next.
    """

    inventory: Inventory
    model: PreTrainedModel
    stats: Stats
    calibration: Tensor
    identity: Mapping[str, Any]
    windows: Callable[[Windows], Tensor]
    tokenizer: Callable[[], Any]
    probe: Callable[[], Probe]
    batch_size: int
    include_path: Path | None
    cache: Path
    made: MadeExperts = field(default_factory=MadeExperts)

    def scores(self, task: str, limit: int | None, candidate: Candidate) -> Sequence[Score]:
        """Return lm-eval's scores of a candidate.

        Args:
            task: name of an lm-eval task.
            limit: first items only, None for all.
            candidate: on the resident model.
        """
        from bench.evaluation.evaluate import evaluate

        return evaluate(
            candidate.model,
            self.tokenizer(),
            [task],
            include_path=self.include_path,
            limit=limit,
            batch_size=self.batch_size,
            model_digest=f"{self.identity['model']}+{candidate.plan.digest}+in-memory",
            cache=self.cache,
        ).scores
