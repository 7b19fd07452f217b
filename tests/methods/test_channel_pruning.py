"""Channel pruning: decisions by hand, the ranking beside a slow one, budgets, refusals, and the damage on a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.decide import LayerwiseDecision
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import case
from bench.models.load import load_model
from methods.channel_pruning import CAMERA, HEAPr, best_channels
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inventory import ExpertForm
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.inventories import toy_inventory
from tests.support.streamed_pass import SQUARE
from tests.support.tiny import tiny_checkpoint, tiny_tokens

SUM = np.array([[9.0, 1, 5], [2, 8, 3], [4, 0, 6], [0, 0, 0]])
PEAK = np.array([[1.0, 7, 5], [9, 0, 3], [0, 6, 2], [0, 0, 0]])


def toy_stats(energy=SUM, peak=PEAK, curvature=SUM, second=None):
    after = curvature if second is None else second
    return Stats(
        {
            "channel_energy": (None, energy, energy),
            "channel_peak": (None, peak, peak),
            "channel_curvature": (None, curvature, after),
        }
    )


def channels(plan: Plan):
    return [layer.channels for layer in plan.layers]


def counts(plan: Plan):
    return [None if layer.channels is None else [len(own) for own in layer.channels] for layer in plan.layers]


def test_camera_by_hand():
    """6 of 12 channels: the best of each expert and two more, 5 and 4 by the sums, 5 and 3 by the maxima."""
    half = [None, ((0, 2), (1,), (0, 2), (0,))]
    plan = CAMERA(keep=0.5, peak=0.0).plan(toy_inventory(), toy_stats())
    assert channels(plan) == [*half, half[1]]
    other = ((1, 2), (0, 2), (1,), (0,))
    assert channels(CAMERA(keep=0.5, peak=1.0).plan(toy_inventory(), toy_stats()))[1] == other
    mixed = CAMERA(keep=0.5, peak=0.25)
    np.testing.assert_allclose(mixed.scores(toy_stats(), 1), 0.75 * SUM + 0.25 * PEAK)
    assert channels(mixed.plan(toy_inventory(), toy_stats()))[1] == ((0, 2), (0, 1), (2,), (0,))
    assert plan.stages == {"channels"}


def test_only_what_counts_is_read():
    assert CAMERA().needs == {"channel_energy", "channel_peak"}
    assert CAMERA(peak=0.0).needs == {"channel_energy"} and CAMERA(peak=1.0).needs == {"channel_peak"}
    assert CAMERA().peak == 0.9 and HEAPr().needs == {"channel_curvature"}
    with pytest.raises(ConfigError):
        CAMERA.configured({"peak": 1.5})


def test_heapr_ranks_over_the_model_or_within_a_layer():
    """The second layer's scores are a hundredth: over all, it keeps one channel per expert."""
    stats = toy_stats(second=SUM / 100)
    whole = HEAPr(keep=0.5).plan(toy_inventory(), stats)
    assert channels(whole) == [None, ((0, 2), (0, 1, 2), (0, 2), (0,)), ((0,), (1,), (2,), (0,))]
    own = HEAPr(keep=0.5, scope="layer").plan(toy_inventory(), stats)
    assert [sum(own_counts) for own_counts in counts(own)[1:]] == [6, 6]
    assert own.layers[1] == own.layers[2]


def test_a_layer_that_keeps_everything_states_nothing():
    stats = toy_stats(curvature=SUM + 100, second=SUM)
    plan = HEAPr(keep=16 / 24).plan(toy_inventory(), stats)
    assert counts(plan) == [None, None, [1] * 4]
    for method in (CAMERA(keep=1.0), HEAPr(keep=1.0), HEAPr(keep=1.0, scope="layer")):
        assert method.plan(toy_inventory(), toy_stats()) == Plan.identity(toy_inventory())


def test_ties_keep_the_lower_channel_expert_and_layer():
    stats = toy_stats(np.ones((4, 3)), np.ones((4, 3)), np.ones((4, 3)))
    assert CAMERA(keep=0.5).plan(toy_inventory(), stats).layers[1].channels == ((0, 1, 2), (0,), (0,), (0,))
    assert channels(HEAPr(keep=0.5).plan(toy_inventory(), stats))[1:] == [
        ((0, 1, 2), (0, 1, 2), (0,), (0,)),
        ((0,),) * 4,
    ]


def test_the_total_is_the_nearest_to_what_is_asked():
    for keep, whole in ((0.37, 8.88), (0.55, 13.2), (0.7, 16.8)):
        for method in (CAMERA(keep=keep), HEAPr(keep=keep), HEAPr(keep=keep, scope="layer")):
            plan = method.plan(toy_inventory(), toy_stats())
            kept = sum(sum([3] * 4 if own is None else own) for own in counts(plan)[1:])
            assert kept == round(whole)


def test_knots_change_the_share_with_depth():
    plan = CAMERA(keep=(0.5, 0.75)).plan(toy_inventory(), toy_stats())
    assert [sum(own) for own in counts(plan)[1:]] == [6, 9]
    assert HEAPr(keep=(0.5, 0.75), scope="layer").plan(toy_inventory(), toy_stats()).stages == {"channels"}
    with pytest.raises(RefusedError, match="depth knots contradict scope='model'"):
        HEAPr(keep=(0.5, 0.75)).plan(toy_inventory(), toy_stats())


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_the_ranking_equals_a_slow_one(multiple):
    rng = np.random.default_rng(multiple)
    for _ in range(30):
        scores = [rng.integers(0, 6, size=width).astype(float) for width in (8, 4, 12, 8)]
        units = int(rng.integers(4, 32 // multiple + 1))
        assert best_channels(scores, units, multiple) == slow_ranking(scores, units, multiple)


def slow_ranking(scores, units, multiple):
    """Give each expert its best unit, and then take the best unit that is next in its expert, one at a time."""
    taken = [1] * len(scores)
    ordered = [sorted(range(len(own)), key=lambda c, own=own: (-own[c], c)) for own in scores]

    def worth(expert):
        nxt = ordered[expert][taken[expert] * multiple : (taken[expert] + 1) * multiple]
        return sum(scores[expert][c] for c in nxt) if nxt else -1.0

    for _ in range(units - len(scores)):
        best = max(range(len(scores)), key=lambda e: (worth(e), -e))
        taken[best] += 1
    return [tuple(sorted(order[: count * multiple])) for order, count in zip(ordered, taken, strict=True)]


def test_multiples():
    example = case("qwen3_moe")
    for method in (
        CAMERA(keep=0.6, multiple=8),
        HEAPr(keep=0.6, multiple=8),
        HEAPr(keep=0.6, multiple=8, scope="layer"),
    ):
        plan = method.plan(example.inventory, example.stats)
        sizes = {len(own) for layer in plan.layers for own in layer.channels or ()}
        assert len(sizes) > 1 and all(size % 8 == 0 and size > 0 for size in sizes)
        total = sum(len(own) for layer in plan.layers for own in layer.channels or ())
        assert abs(total - 0.6 * 5 * 16 * 32) <= 8
    with pytest.raises(RefusedError, match="multiple=64 does not divide the 32 channels"):
        CAMERA(multiple=64).plan(example.inventory, example.stats)


def test_refusals_say_what_is_possible():
    with pytest.raises(RefusedError, match=r"leaves 3 channels for the 4 experts of layer 1.*smallest keep is 0\.333"):
        CAMERA(keep=0.2).plan(toy_inventory(), toy_stats())
    with pytest.raises(RefusedError, match="for the 8 experts of 2 layers"):
        HEAPr(keep=0.2).plan(toy_inventory(), toy_stats())
    inventory = toy_inventory()
    layers = tuple(
        replace(layer, form=ExpertForm(widths=(3, 2, 1, 3))) if layer.experts else layer for layer in inventory.layers
    )
    for method in (CAMERA(), HEAPr()):
        reason = method.refuse(inventory.with_layers(layers))
        assert reason is not None and "another form already" in reason


@pytest.mark.parametrize("method", [CAMERA(), HEAPr(), HEAPr(scope="layer")], ids=str)
def test_relabelled_experts_relabel_the_channels(method):
    example = case("olmoe")
    order = np.random.default_rng(3).permutation(16)
    turned = {
        name: tuple(None if v is None else v[order] for v in values)
        for name, values in example.stats.only(method.needs).values.items()
    }
    before = method.plan(example.inventory, example.stats)
    after = method.plan(example.inventory, Stats(turned))
    for old, new in zip(before.layers, after.layers, strict=True):
        assert old.channels is not None and new.channels == tuple(old.channels[e] for e in order)


@pytest.mark.parametrize("name", ["camera_p", "heapr"])
def test_channels_that_do_nothing_go_first_and_change_nothing(name, tmp_path):
    """Half of the columns of down are zero: cutting these leaves the model's outputs as they were."""
    from safetensors.torch import load_file, save_file

    folder = tiny_checkpoint("deepseek_v2", tmp_path / "dead")
    tensors = load_file(folder / "model.safetensors")
    dead = {}
    for number, key in enumerate(key for key in sorted(tensors) if ".experts." in key and "down_proj" in key):
        columns = torch.randperm(32, generator=torch.Generator().manual_seed(number))[:16]
        dead[tuple(int(part) for part in key.split(".") if part.isdigit())] = set(columns.tolist())
        tensors[key][:, columns] = 0.0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    method = CAMERA(keep=0.5) if name == "camera_p" else HEAPr(keep=0.5)
    plan = method.plan(checkpoint.inventory, calibrate(checkpoint, SQUARE, method.needs))
    for layer in checkpoint.inventory.moe_layers:
        own = plan.layers[layer].channels
        assert own is not None
        assert all(set(kept) == set(range(32)) - dead[layer, e] for e, kept in enumerate(own))
    written = apply(checkpoint, plan, tmp_path / "cut")
    with torch.no_grad():
        before, after = (load_model(path)(tiny_tokens(2, 16, seed=1)).logits for path in (folder, written))
    assert (before - after).abs().max() <= 1e-5


def test_they_beat_the_channels_that_they_cut(tmp_path):
    """The loss on the calibration tokens rises less than when the same number of the best channels goes."""
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path / "source"))
    loss = {}
    for method in (CAMERA(keep=0.7), HEAPr(keep=0.7)):
        stats = calibrate(checkpoint, SQUARE, method.needs)
        turned = Stats(
            {name: tuple(None if v is None else 1.0 / (v + 1e-30) for v in vs) for name, vs in stats.values.items()}
        )
        for label, source in (("kept", stats), ("cut", turned)):
            plan = method.plan(checkpoint.inventory, source)
            loss[label] = _change(checkpoint, apply(checkpoint, plan, tmp_path / f"{method.name}-{label}"))
        assert loss["kept"] < 0.5 * loss["cut"]


def _change(checkpoint, path):
    tokens = tiny_tokens()
    with torch.no_grad():
        return float((load_model(path)(tokens).logits - load_model(checkpoint.path)(tokens).logits).square().mean())


def test_camera_can_be_sequential(tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint("olmoe", tmp_path / "source"))
    method = CAMERA(keep=0.5)
    decide = LayerwiseDecision(method, checkpoint.inventory)
    stats = calibrate(checkpoint, SQUARE, method.needs, decide=decide)
    plan = method.plan(checkpoint.inventory, stats)
    one_shot = method.plan(checkpoint.inventory, calibrate(checkpoint, SQUARE, method.needs))
    assert plan.layers[0] == one_shot.layers[0] and plan.layers[2] != one_shot.layers[2]
    half = Plan.of(checkpoint.inventory, [*plan.layers[:2], LayerPlan()])
    cut = Checkpoint.open(apply(checkpoint, half, tmp_path / "cut"))
    theirs = calibrate(cut, SQUARE, method.needs).layer("channel_energy", 2)
    np.testing.assert_allclose(stats.layer("channel_energy", 2), theirs, rtol=1e-3, atol=1e-5 * theirs.max())
