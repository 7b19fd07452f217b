"""Spectra: singular values of the experts' matrices, and of what they make of their inputs."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.streaming import StreamedPass
from bench.calibration.sums.disk_array import disk_bytes
from bench.calibration.sums.grams import Grams
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods.framework.errors import StatsError
from methods.framework.inside import LowRank
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.streamed_pass import RAGGED, SQUARE, assert_same

SPECTRA = {"weight_spectrum", "whitened_spectrum"}
GRAMS = {"input_gram", "channel_gram"}
MANY_BLOCKS = Effort(hidden_bytes=5 * 64 * 8 * 30, expert_rows=3)


def test_their_squares_add_up_to_norms_and_output_energies(qwen):
    stats = calibrate(qwen, SQUARE, SPECTRA | GRAMS | {"weight_norm"}, dtype="float64")
    for layer in range(3):
        squares = (stats.layer("weight_spectrum", layer) ** 2).sum(axis=-1)
        np.testing.assert_allclose(squares, stats.layer("weight_norm", layer), rtol=1e-9)
        for expert in range(8):
            down = next(e for e in qwen.inventory.layers[layer].with_role("expert.down") if e.expert == expert)
            weight = qwen.read(down).double().numpy()
            energy = np.trace(weight @ stats.layer("channel_gram", layer)[expert] @ weight.T)
            found = (stats.layer("whitened_spectrum", layer)[expert, 2] ** 2).sum()
            np.testing.assert_allclose(found, energy, rtol=1e-5)


def test_blocks_and_gram_statistics_beside_them_change_no_value(qwen, tmp_path):
    whole = calibrate(qwen, RAGGED, SPECTRA, dtype="float64")
    for needs, effort in ((SPECTRA, MANY_BLOCKS), (SPECTRA | GRAMS, Effort(batch_tokens=1, expert_rows=2))):
        other = calibrate(qwen, RAGGED, needs, dtype="float64", effort=replace(effort, scratch=tmp_path))
        assert_same(other, whole, rtol=1e-6, names=SPECTRA)
    plain = calibrate(qwen, RAGGED, GRAMS)
    assert_same(calibrate(qwen, RAGGED, SPECTRA | GRAMS), plain, rtol=0.0, names=GRAMS)


def test_experts_without_tokens_have_the_spectrum_of_their_weights(tiny):
    stats = calibrate(tiny("mixtral"), Corpus.of([[3, 4]]), SPECTRA | {"routed_tokens"})
    for layer in range(3):
        idle = stats.layer("routed_tokens", layer) == 0
        plain, whitened = (stats.layer(name, layer) for name in ("weight_spectrum", "whitened_spectrum"))
        assert np.array_equal(plain[idle], whitened[idle]) and idle.any()
        assert not np.isclose(plain[~idle], whitened[~idle], rtol=1e-3).all()


def test_sums_are_gone_when_the_layer_is_done(qwen, tmp_path, monkeypatch):
    """One Gram matrix is in memory; the others lie in files without a name, which no cache keeps."""
    seen = []
    inner = Grams.add
    monkeypatch.setattr(Grams, "add", lambda self, *rest: (inner(self, *rest), seen.append(self._flat.numel()))[0])
    calibrate(qwen, RAGGED, {"whitened_spectrum", "input_gram"}, cache=tmp_path, effort=MANY_BLOCKS)
    assert set(seen) == {64 * 64}
    assert len(list(tmp_path.glob("*.npy"))) == 3, "the Gram matrices that were asked for"
    assert not list(tmp_path.glob("*channel_gram*")) and not list(tmp_path.glob(".*"))


def test_room_for_the_sums_of_one_layer_is_asked_for(qwen, tmp_path, monkeypatch):
    size = disk_bytes(qwen.inventory, {"whitened_spectrum"}, 0)
    assert size == 8 * 8 * (64**2 + 32**2)
    assert disk_bytes(qwen.inventory, {"weight_spectrum"}, 0) == 0
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=size - 1))
    monkeypatch.setattr(StreamedPass, "_embed", lambda *args: pytest.fail("begun without room"))
    with pytest.raises(StatsError, match="GiB are free; free space"):
        calibrate(qwen, SQUARE, {"whitened_spectrum"}, effort=Effort(scratch=tmp_path))


def test_a_factored_checkpoint_has_as_many_singular_values_as_ranks(qwen, tmp_path):
    ranks = tuple((2 + e, 3, 0) for e in range(8))
    layer = LayerPlan(rank=LowRank(ranks=ranks))
    plan = Plan.of(qwen.inventory, [layer, LayerPlan(), LayerPlan()])
    factored = Checkpoint.open(apply(qwen, plan, tmp_path / "factored"))
    before, after = calibrate(qwen, SQUARE, SPECTRA), calibrate(factored, SQUARE, SPECTRA)
    for expert, (gate, up, _) in enumerate(ranks):
        plain = before.layer("weight_spectrum", 0)[expert]
        found = after.layer("weight_spectrum", 0)[expert]
        for place, rank in enumerate((gate, up, 32)):
            np.testing.assert_allclose(found[place, :rank], plain[place, :rank], rtol=1e-5)
            assert (found[place, rank:] <= 1e-5 * plain[place, 0]).all()
