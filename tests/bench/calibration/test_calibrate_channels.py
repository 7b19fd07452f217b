"""Statistics of channels: definitions, kinds of run, idle experts, layers behind a map, slices, what is left of the layer."""

from __future__ import annotations

import numpy as np
import pytest

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.framework.errors import RefusedError
from methods.framework.inside import Quantisation, Sparsity
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.inside_reference import inside_reference
from tests.support.streamed_pass import NEEDS, RAGGED, SQUARE, Fixed, assert_same

CHANNELS = {"channel_magnitude", "channel_energy", "channel_peak", "input_magnitude", "routed_tokens"}
MANY_BLOCKS = Effort(hidden_bytes=5 * 64 * 4 * 30, expert_rows=3)


def test_each_can_be_asked_for_alone_and_changes_no_other(qwen):
    together = calibrate(qwen, RAGGED, CHANNELS | {"gated_channel_square", "block_cosine"}, dtype="float64")
    plain = calibrate(qwen, RAGGED, {"gated_channel_square", "block_cosine"}, dtype="float64")
    assert_same(together, plain, rtol=0.0, names=plain.values)
    for name in CHANNELS:
        alone = calibrate(qwen, RAGGED, {name}, dtype="float64")
        assert set(alone.values) == {name}
        assert_same(alone, together, rtol=0.0, names={name})


def test_energy_is_the_gated_square_and_bounds_the_peak(qwen):
    stats = calibrate(qwen, SQUARE, CHANNELS | {"gated_channel_square", "channel_square"})
    for layer in range(3):
        tokens = stats.layer("routed_tokens", layer)
        assert tokens.sum() == 96 * 2
        columns = np.stack([_down(qwen, layer, e) for e in range(8)])
        energy = stats.layer("gated_channel_square", layer) * tokens[:, None] * (columns**2).sum(axis=1)
        np.testing.assert_allclose(stats.layer("channel_energy", layer), energy, rtol=1e-9)
        peak = stats.layer("channel_peak", layer)
        assert (peak <= energy * (1 + 1e-9)).all() and (peak * tokens[:, None] >= energy * (1 - 1e-9)).all()
        assert (stats.layer("channel_magnitude", layer) <= np.sqrt(stats.layer("channel_square", layer))).all()


def _down(checkpoint, layer, expert):
    entry = next(e for e in checkpoint.inventory.layers[layer].with_role("expert.down") if e.expert == expert)
    return checkpoint.read(entry).double().numpy()


def test_an_expert_without_tokens_has_zeros(tiny):
    stats = calibrate(tiny("mixtral"), Corpus.of([[3, 4]]), CHANNELS)
    for layer in range(3):
        counts = stats.layer("routed_tokens", layer)
        assert counts.sum() == 4 and (counts == 0).sum() >= 4
        for name in ("channel_magnitude", "channel_energy", "channel_peak"):
            assert np.array_equal(stats.layer(name, layer).any(axis=1), counts > 0)


def test_windows_add_up(qwen):
    whole = calibrate(qwen, RAGGED, CHANNELS, dtype="float64")
    parts = [calibrate(qwen, Corpus.of([window]), CHANNELS, dtype="float64") for window in RAGGED.windows]
    lengths = [len(window) for window in RAGGED.windows]
    for layer in range(3):
        for name in ("routed_tokens", "channel_energy"):
            total = sum(stats.layer(name, layer) for stats in parts)
            np.testing.assert_allclose(whole.layer(name, layer), total, rtol=1e-9)
        most = np.max([stats.layer("channel_peak", layer) for stats in parts], axis=0)
        np.testing.assert_allclose(whole.layer("channel_peak", layer), most, rtol=1e-9)
        mean = sum(n * stats.layer("input_magnitude", layer) for n, stats in zip(lengths, parts, strict=True)) / 63
        np.testing.assert_allclose(whole.layer("input_magnitude", layer), mean, rtol=1e-9)


def test_experts_behind_a_map_see_the_tokens_of_all_their_rows(mapped):
    stats = calibrate(mapped, RAGGED, CHANNELS | {"token_gram"}, sampled_tokens=20, effort=MANY_BLOCKS)
    model = load_model(mapped.path, experts_implementation="eager")
    expected = inside_reference(model, RAGGED.windows, {1: mapped.inventory.layers[1].expert_map}, gradients=False)
    for name in CHANNELS:
        np.testing.assert_allclose(stats.layer(name, 1), expected[name][1], rtol=2e-5, atol=1e-5, err_msg=name)


def test_sequential_channels_are_those_that_were_really_cut(qwen, tmp_path):
    """Layer 2 sees what layer 1 is after its channels were cut while the pass ran."""
    cut = LayerPlan(channels=tuple(tuple(range(e, 32, 2 + e % 3)) for e in range(8)))
    plans = [LayerPlan(experts=(0, 2, 4, 7)), cut, LayerPlan()]
    stats = calibrate(qwen, SQUARE, CHANNELS, decide=Fixed(plans))
    compressed = Checkpoint.open(apply(qwen, Plan.of(qwen.inventory, plans), tmp_path / "cut"))
    theirs = calibrate(compressed, SQUARE, CHANNELS)
    assert not np.allclose(
        stats.layer("channel_energy", 2), calibrate(qwen, SQUARE, CHANNELS).layer("channel_energy", 2)
    )
    for name in CHANNELS:
        value = theirs.layer(name, 2)
        np.testing.assert_allclose(stats.layer(name, 2), value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_all_statistics_of_narrower_experts_are_slices_padded_with_zeros(qwen, tmp_path):
    """In the first changed layer nothing before differs, so its channels are measured as they were."""
    kept = tuple(tuple(range(e, 32, 2 + e % 3)) for e in range(8))
    plan = Plan.of(qwen.inventory, [LayerPlan(channels=kept), LayerPlan(), LayerPlan()])
    cut = Checkpoint.open(apply(qwen, plan, tmp_path / "cut"))
    names = {"channel_square", "channel_gram", "input_gram", "channel_curvature", *CHANNELS}
    sliced = calibrate(qwen, SQUARE, names).restricted(plan)
    measured = calibrate(cut, SQUARE, NEEDS)
    width = max(map(len, kept))
    for name in names - {"channel_curvature"}:
        value = measured.layer(name, 0)
        assert value.shape == sliced.layer(name, 0).shape
        np.testing.assert_allclose(
            sliced.layer(name, 0), value, rtol=1e-5, atol=1e-6 * np.abs(value).max(), err_msg=name
        )
    for name in ("channel_energy", "channel_curvature"):
        for expert, own in enumerate(kept):
            row = measured.layer(name, 0)[expert]
            assert row.shape == (width,) and row[: len(own)].all() and not row[len(own) :].any()


def test_slices_follow_experts_and_channels_and_whole_experts_are_stale():
    kept, channels = (1, 3), ((0, 2), (1, 2, 3))
    energy = np.arange(20.0).reshape(4, 5)
    gram = np.arange(100.0).reshape(4, 5, 5)
    stats = Stats(
        {
            "channel_energy": (energy,),
            "channel_gram": (gram,),
            "input_magnitude": (np.ones(3),),
            "weight_norm": (np.ones((4, 3)),),
            "whitened_spectrum": (np.ones((4, 3, 3)),),
        }
    )
    sliced = stats.restricted(Plan(family="toy", layers=(LayerPlan(experts=kept, channels=channels),)))
    np.testing.assert_array_equal(sliced.layer("channel_energy", 0), [[5, 7, 0], [16, 17, 18]])
    expected = np.zeros((2, 3, 3))
    expected[0, :2, :2] = gram[1][np.ix_((0, 2), (0, 2))]
    expected[1] = gram[3][np.ix_((1, 2, 3), (1, 2, 3))]
    np.testing.assert_array_equal(sliced.layer("channel_gram", 0), expected)
    np.testing.assert_array_equal(sliced.layer("input_magnitude", 0), np.ones(3))
    for name in ("weight_norm", "whitened_spectrum"):
        with pytest.raises(RefusedError, match=f"'{name}' describes experts that an earlier step merged or changed"):
            sliced.layer(name, 0)
    sparse = stats.restricted(Plan(family="toy", layers=(LayerPlan(sparsity=Sparsity(share=0.5)),)))
    assert sparse.layer("weight_norm", 0).shape == (4, 3)
    with pytest.raises(RefusedError):
        sparse.layer("whitened_spectrum", 0)


def test_experts_in_few_bits_are_measured_as_what_they_stand_for(qwen, tmp_path):
    plan = Plan.of(qwen.inventory, [LayerPlan(bits=Quantisation(bits=4, group=32))] * 3)
    packed = Checkpoint.open(apply(qwen, plan, tmp_path / "packed"))
    assert packed.inventory.layers[0].form is not None
    stats = calibrate(packed, RAGGED, NEEDS)
    expected = inside_reference(load_model(packed.path, experts_implementation="eager"), RAGGED.windows)
    assert not np.allclose(
        expected["weight_spectrum"][0], calibrate(qwen, None, {"weight_spectrum"}).layer("weight_spectrum", 0)
    )
    for name, by_layer in expected.items():
        for layer, value in by_layer.items():
            atol = 1e-5 * np.abs(value).max()
            np.testing.assert_allclose(stats.layer(name, layer), value, rtol=1e-4, atol=atol, err_msg=name)
