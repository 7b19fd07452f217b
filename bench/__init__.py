"""Measures compression methods: reads, compresses, evaluates, times and records Mixture-of-Experts checkpoints.

The names below are moebench as a library; each is imported when it is first used, so ``import bench`` costs nothing.
"""

from typing import TYPE_CHECKING

from methods.framework.lazy_names import lazy_names

if TYPE_CHECKING:
    from bench.library.compressing import compress
    from bench.library.measuring import calibrate
    from bench.library.opening import open_checkpoint
    from bench.library.reporting import report
    from bench.library.scoring import evaluate
    from bench.models.load import load_model

__all__ = ["calibrate", "compress", "evaluate", "load_model", "open_checkpoint", "report"]

__getattr__, __dir__ = lazy_names(__name__)
