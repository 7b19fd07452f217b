"""Statistics of some tokens of a text: all tokens pass the model, and sums hold those that count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.decide import LayerwiseDecision
from bench.checkpoint.checkpoint import Checkpoint
from bench.probing.model_probe import ModelProbe
from bench.running.calibrator import Calibrator
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from bench.text.corpus import Corpus
from methods.criterion import REAP
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.stats import CATALOGUE
from methods.registry import method
from tests.bench.calibration.test_calibrate import BLOCKS, PIECES, assert_near
from tests.support.calibration_reference import ExpertReference, reference
from tests.support.inside_reference import inside_reference
from tests.support.streamed_pass import NEEDS, RAGGED, assert_same, plain_model

STREAMED = frozenset(name for name in NEEDS if CATALOGUE[name].cost not in ("weights", "gradient"))
ROUTED = frozenset(name for name in STREAMED if CATALOGUE[name].cost == "routed")
MARKS = tuple(
    tuple(bool((number + 3 * t) % 5 in (0, 3)) and number != 2 for t in range(len(window)))
    for number, window in enumerate(RAGGED.windows)
)
MARKED = Corpus.of(RAGGED.windows, "some tokens", MARKS)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2", "deepseek_v3"])
def test_statistics_equal_loops_over_the_tokens_that_count(tiny, family: str) -> None:
    """Samples, several blocks, one of which has no token that counts, and every statistic of the catalogue that has tokens."""
    checkpoint = tiny(family)
    order = sorted(range(len(RAGGED.windows)), key=lambda number: len(RAGGED.windows[number]))
    windows, marks = [RAGGED.windows[number] for number in order], [MARKS[number] for number in order]
    router, counted = checkpoint.inventory.router, sum(map(sum, MARKS))
    values = reference(plain_model(checkpoint), windows, router.score == "sigmoid", marks)
    experts = ExpertReference(plain_model(checkpoint), windows, router, 2, marks)
    values |= {
        **experts.of_all(),
        **inside_reference(plain_model(checkpoint), windows, gradients=False, marks=marks),
    }
    for sampled, needs, effort in ((9, STREAMED, PIECES), (63, STREAMED, Effort(cka_tokens=5)), (9, ROUTED, BLOCKS)):
        stats = calibrate(checkpoint, MARKED, needs, sampled_tokens=sampled, effort=effort)
        assert stats.tokens == counted == MARKED.counted < MARKED.tokens
        expected = {**values, **experts.of_samples(sampled, effort.cka_tokens)}
        for name in needs - {"hidden_cosine"}:
            for index, value in expected[name].items():
                assert_near(stats.layer(name, index), value, name, f"{name} of layer {index}")
        if "hidden_cosine" in needs:
            np.testing.assert_allclose(stats.model("hidden_cosine"), expected["hidden_cosine"], rtol=1e-5, atol=1e-6)


def test_a_mask_of_all_tokens_is_no_mask_but_another_text(tiny) -> None:
    whole = Corpus.of(RAGGED.windows, "all tokens", [[True] * len(window) for window in RAGGED.windows])
    assert whole.digest != RAGGED.digest and MARKED.digest not in (whole.digest, RAGGED.digest)
    assert Corpus.of(RAGGED.windows).digest == RAGGED.digest
    ours, theirs = (calibrate(tiny("mixtral"), corpus, STREAMED) for corpus in (whole, RAGGED))
    assert ours.tokens == theirs.tokens == 63
    assert_same(ours, theirs, rtol=0.0, names=STREAMED)


def test_compressed_layers_are_measured_on_the_tokens_that_count(tiny) -> None:
    checkpoint = tiny("mixtral")
    decide = LayerwiseDecision(REAP(keep=0.5), checkpoint.inventory)
    needs = {"gate_norm_moment"}
    marked, plain = (calibrate(checkpoint, text, needs, decide=decide) for text in (MARKED, RAGGED))
    for index in checkpoint.inventory.moe_layers:
        counts = [stats.layer("gate_norm_moment", index)[:, 0, 0].sum() for stats in (marked, plain)]
        assert counts == [MARKED.counted * 2, RAGGED.tokens * 2]


def test_what_needs_whole_windows_is_refused(tiny, tmp_path: Path) -> None:
    checkpoint: Checkpoint = tiny("mixtral")
    backward = next(name for name in sorted(NEEDS) if CATALOGUE[name].cost == "gradient")
    with pytest.raises(RefusedError, match=f"{backward} takes the loss .*not built; count every token"):
        calibrate(checkpoint, MARKED, {backward})
    with pytest.raises(RefusedError, match="runs the model takes the loss"):
        ModelProbe(checkpoint, MARKED)
    calibrator = Calibrator(checkpoint, CalibrationConfig(), Store(tmp_path), frozenset())
    calibrator._corpus = MARKED
    probing = method("diep", keep=0.5)
    with pytest.raises(RefusedError, match="diep takes the loss"):
        calibrator.check(probing, probing.measured)
    calibrator.check(method("reap", keep=0.5), frozenset({"gate_norm_moment"}))


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([[True]], "do not fit"),
        ([[True] * 3] * 5, "do not fit"),
        ([[False] * len(w) for w in RAGGED.windows], "no token"),
    ],
)
def test_marks_that_make_no_sense_are_refused(marks: list[list[bool]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Corpus.of(RAGGED.windows, "text", marks)
