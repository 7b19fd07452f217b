"""Statistics of gradients against autograd on explicit weights, finite differences, and windows one by one."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import bench.calibration.gradients
from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.framework.errors import ConfigError, RefusedError, StatsError
from methods.framework.inside import LowRank
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from tests.support.inside_reference import gradient_reference
from tests.support.streamed_pass import RAGGED, SQUARE, Fixed, assert_same, plain_model
from tests.support.tiny import FAMILIES, tiny_checkpoint

GRADIENTS = {"channel_curvature", "fisher_mass"}
"""Statistics whose sums are in float64."""
ALL = GRADIENTS | {"entry_fisher"}


@pytest.mark.parametrize("family", FAMILIES)
def test_they_equal_autograd_on_all_weights(tiny, family):
    """Every expert's output is a tensor of its own there, G_j a matrix, and weights have gradients."""
    checkpoint = tiny(family)
    stats = calibrate(checkpoint, RAGGED, ALL, dtype="float64")
    expected = gradient_reference(plain_model(checkpoint, torch.float64), RAGGED.windows)
    assert set(stats.values) == ALL and stats.tokens == 63
    for layer in checkpoint.inventory.moe_layers:
        for name in ALL:
            value = expected[name][layer]
            assert value.max() > 0 and stats.layer(name, layer).shape == value.shape
            atol = 1e-9 * value.max()
            np.testing.assert_allclose(stats.layer(name, layer), value, rtol=1e-6, atol=atol, err_msg=name)


def test_single_precision_is_near(qwen):
    exact, single = (calibrate(qwen, RAGGED, GRADIENTS, dtype=dtype) for dtype in ("float64", "float32"))
    assert_same(single, exact, rtol=1e-3, names=GRADIENTS)


def test_curvature_of_a_channel_by_finite_differences(tiny):
    """With one token per expert, s_c = a_c^2 (dL/da_c)^2: the square of the slope in the size of column c of down."""
    checkpoint = tiny("olmoe")
    corpus = Corpus.of([[3, 9]])
    stats = calibrate(checkpoint, corpus, {"channel_curvature", "routed_tokens"}, dtype="float64")
    layer = 1
    expert = _of_one_token(stats, layer)
    curvature = stats.layer("channel_curvature", layer)[expert]
    channel, step = int(curvature.argmax()), 0.02
    losses = []
    for factor in (1 + step, 1 - step):
        model = load_model(checkpoint.path, torch.float64, experts_implementation="eager")
        with torch.no_grad():
            model.model.layers[layer].mlp.experts.down_proj[expert, :, channel] *= factor
            logits = model(torch.tensor([[3, 9]])).logits
        losses.append(float(F.cross_entropy(logits[0, :1], torch.tensor([9]))))
    slope = (losses[0] - losses[1]) / (2 * step)
    np.testing.assert_allclose(curvature[channel], slope**2, rtol=1e-3)


def _of_one_token(stats, layer):
    """Return an expert that the first token chooses and the second does not."""
    used = stats.layer("routed_tokens", layer) == 1
    curved = stats.layer("channel_curvature", layer).any(axis=1)
    return int(np.flatnonzero(used & curved)[0])


def test_windows_are_independent(qwen):
    """Fisher masses add up over windows; sums of squares do too, whatever the order and the lengths beside them."""
    whole = calibrate(qwen, RAGGED, GRADIENTS, dtype="float64")
    turned = calibrate(qwen, Corpus.of(RAGGED.windows[::-1]), GRADIENTS, dtype="float64")
    assert_same(turned, whole, rtol=1e-12, names=GRADIENTS)
    parts = [calibrate(qwen, Corpus.of([window]), GRADIENTS, dtype="float64") for window in RAGGED.windows]
    for layer in range(3):
        total = sum(stats.layer("fisher_mass", layer) for stats in parts)
        np.testing.assert_allclose(whole.layer("fisher_mass", layer), total, rtol=1e-10)
    doubled = calibrate(qwen, Corpus.of([*RAGGED.windows, *RAGGED.windows]), GRADIENTS, dtype="float64")
    for layer in range(3):
        np.testing.assert_allclose(
            doubled.layer("channel_curvature", layer), whole.layer("channel_curvature", layer), rtol=1e-10
        )
        np.testing.assert_allclose(
            doubled.layer("fisher_mass", layer), 2 * whole.layer("fisher_mass", layer), rtol=1e-10
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squares_by_entry_add_up_to_masses(qwen, dtype):
    """Means over windows, so that twice the same windows are the same; a window counts whatever its length."""
    names = {"entry_fisher", "fisher_mass"}
    stats = calibrate(qwen, RAGGED, names, dtype=dtype)
    doubled = calibrate(qwen, Corpus.of([*RAGGED.windows, *RAGGED.windows]), {"entry_fisher"}, dtype=dtype)
    for layer in range(3):
        entries = stats.layer("entry_fisher", layer)
        assert entries.dtype == np.float32 and isinstance(entries, np.memmap)
        total = len(RAGGED.windows) * entries.sum(axis=(1, 3), dtype=np.float64)
        np.testing.assert_allclose(total, stats.layer("fisher_mass", layer), rtol=1e-4)
        np.testing.assert_allclose(doubled.layer("entry_fisher", layer), entries, rtol=1e-6)


def test_squares_by_entry_follow_experts_and_channels(qwen):
    """A selection before slices the experts, cut channels their rows and columns; an average leaves nothing to read."""
    stats = calibrate(qwen, RAGGED, {"entry_fisher"})
    whole = stats.layer("entry_fisher", 1)
    few = stats.restricted(Plan.of(qwen.inventory, [LayerPlan(), LayerPlan(experts=(1, 4, 6)), LayerPlan()]))
    np.testing.assert_array_equal(few.layer("entry_fisher", 1), whole[[1, 4, 6]])
    kept = tuple((expert, 10 + expert) for expert in range(8))
    cut = stats.restricted(Plan.of(qwen.inventory, [LayerPlan(), LayerPlan(channels=kept), LayerPlan()]))
    for expert in range(8):
        np.testing.assert_array_equal(cut.layer("entry_fisher", 1)[expert], whole[expert, [expert, 10 + expert]])
    merge = Merge(into=1, members=(1, 2), weights=(0.5, 0.5))
    merged = stats.restricted(
        Plan.of(qwen.inventory, [LayerPlan(), LayerPlan(experts=(0, 1), merges=(merge,)), LayerPlan()])
    )
    with pytest.raises(RefusedError, match="measure it anew"):
        merged.layer("entry_fisher", 1)


def test_room_for_squares_by_entry_is_asked_for_before_anything_is_measured(qwen, monkeypatch):
    monkeypatch.setattr(bench.calibration.gradients, "ResidentModel", lambda *args: pytest.fail("the model is loaded"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 8 * 3 * 32 * 64 * 4 - 1))
    with pytest.raises(StatsError, match="free space"):
        calibrate(qwen, RAGGED, {"entry_fisher"})


def test_a_window_of_one_token_predicts_nothing(qwen):
    stats = calibrate(qwen, Corpus.of([[5]]), ALL)
    assert not any(stats.layer(name, layer).any() for name in ALL for layer in range(3))


def test_experts_without_tokens_have_zeros(tiny):
    stats = calibrate(tiny("mixtral"), Corpus.of([[3, 4, 5]]), ALL | {"routed_tokens"})
    for layer in range(3):
        counts = stats.layer("routed_tokens", layer)
        assert (counts == 0).any()
        for name in ALL:
            assert not stats.layer(name, layer)[counts == 0].any()


def test_layers_behind_a_map(mapped):
    stats = calibrate(mapped, RAGGED, ALL, dtype="float64")
    shapes = [stats.layer("fisher_mass", index).shape for index in range(3)]
    assert shapes == [(8, 3), (2, 3), (8, 3)]
    model = load_model(mapped.path, torch.float64, experts_implementation="eager")
    expected = gradient_reference(model, RAGGED.windows, {1: mapped.inventory.layers[1].expert_map})
    for name in ALL:  # norms are float32 in between
        np.testing.assert_allclose(stats.layer(name, 1), expected[name][1], rtol=1e-5, err_msg=name)


def test_factored_experts_are_those_that_their_factors_stand_for(qwen, tmp_path):
    """Whole factors change nothing, and where gradients are taken the matrices are put together again."""
    plan = Plan.of(qwen.inventory, [LayerPlan(rank=LowRank(ranks=((32, 32, 32),) * 8)), LayerPlan(), LayerPlan()])
    factored = Checkpoint.open(apply(qwen, plan, tmp_path / "factored"))
    ours, theirs = (calibrate(c, RAGGED, ALL, dtype="float64") for c in (factored, qwen))
    assert_same(ours, theirs, rtol=1e-4, names=ALL)


def test_they_are_measured_and_cached_apart(qwen, tmp_path, monkeypatch):
    both = calibrate(qwen, SQUARE, ALL | {"block_cosine", "weight_norm"}, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    monkeypatch.setattr(bench.calibration.gradients, "measure_gradients", lambda *args: pytest.fail("measured again"))
    alone = calibrate(qwen, SQUARE, ALL | {"weight_norm"}, cache=tmp_path)
    assert set(alone.values) == ALL | {"weight_norm"}
    decide = Fixed([LayerPlan(drop="moe"), LayerPlan(), LayerPlan()])
    sequential = calibrate(qwen, SQUARE, ALL | {"moe_io_cosine"}, cache=tmp_path, decide=decide)
    for stats in (alone, sequential):
        assert_same(stats, both, rtol=0.0, names=ALL)
    assert decide.seen[1].layer("fisher_mass", 2).shape == (8, 3), "a rule sees those of the model that is compressed"


def test_what_cannot_be_measured_says_so(qwen, tmp_path):
    with pytest.raises(ConfigError, match="channel_curvature, entry_fisher, fisher_mass need a corpus"):
        calibrate(qwen, None, ALL)
    folder = tiny_checkpoint("qwen3_moe", tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StatsError, match="is not finite"):
        calibrate(Checkpoint.open(folder), SQUARE, ALL)


def test_no_gradient_is_kept_for_a_weight(qwen):
    resident = bench.calibration.gradients.ResidentModel(qwen, torch.device("cpu"), torch.float32)
    passed = resident.backward([3, 4, 5])
    assert all(
        p.grad is None and not p.requires_grad for module in resident.experts.values() for p in module.parameters()
    )
    assert {layer: seen.slope_TD.shape for layer, seen in passed.items()} == dict.fromkeys(range(3), (3, 64))
    assert not passed[2].slope_TD[2].any() and passed[2].slope_TD[0].any(), "the last token predicts nothing"
