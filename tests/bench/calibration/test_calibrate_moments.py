"""Moments of the experts' inputs: definitions, blocks of tokens, memory maps, idle experts, and what they leave alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bench.calibration.layers.expert_pass
from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.decide import LayerwiseDecision
from bench.calibration.streaming import StreamedPass
from bench.calibration.sums.disk_array import DiskArrays, disk_bytes
from bench.calibration.sums.grams import Grams
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.criterion import REAP
from methods.framework.errors import StatsError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE
from methods.kernels.experts import second_moments
from tests.support.streamed_pass import NEEDS, RAGGED, SQUARE, Fixed, assert_same
from tests.support.tiny import tiny_checkpoint

SQUARES = {"input_square", "channel_square", "gated_input_square", "gated_channel_square"}
GRAMS = {"input_gram", "channel_gram"}
MOMENTS = SQUARES | GRAMS
MANY_BLOCKS = Effort(hidden_bytes=5 * 64 * 4 * 30, expert_rows=3)
ORDINARY = {name for name in NEEDS - MOMENTS if CATALOGUE[name].cost not in ("weights", "gradient")}


def assert_bits(ours, theirs, names):
    for name in names:
        for a, b in zip(ours.values[name], theirs.values[name], strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b, err_msg=name)


def assert_mapped(stats, layers):
    for name in GRAMS:
        for layer in layers:
            value = stats.layer(name, layer)
            assert isinstance(value, np.memmap) and value.dtype == np.float32 and not value.flags.writeable


def test_blocks_and_batches_change_no_value(tiny, tmp_path):
    checkpoint = tiny("deepseek_v2")
    whole = calibrate(checkpoint, RAGGED, MOMENTS, dtype="float64")
    for effort in (
        Effort(hidden_bytes=1),
        Effort(hidden_bytes=5 * 64 * 8 * 30, scratch=tmp_path),
        Effort(batch_tokens=1, expert_rows=2),
    ):
        other = calibrate(checkpoint, RAGGED, MOMENTS, dtype="float64", effort=effort)
        assert_same(other, whole, rtol=1e-12, names=SQUARES)
        assert_same(other, whole, rtol=1e-6, names=GRAMS)


def test_grams_are_symmetric_and_their_diagonals_are_the_squares(qwen):
    stats = calibrate(qwen, SQUARE, MOMENTS, effort=MANY_BLOCKS)
    for layer in range(3):
        for side in ("input", "channel"):
            gram = stats.layer(f"{side}_gram", layer)
            np.testing.assert_array_equal(gram, gram.transpose(0, 2, 1))
            diagonal = np.diagonal(gram, axis1=1, axis2=2)
            np.testing.assert_allclose(diagonal, stats.layer(f"{side}_square", layer), rtol=1e-6)
            assert np.abs(gram).sum() > 2 * np.abs(diagonal).sum(), "the rest of the matrix is empty"


def test_an_expert_without_tokens_has_zeros_and_only_such_an_expert(tiny):
    stats = calibrate(tiny("mixtral"), Corpus.of([[3, 4]]), MOMENTS | {"gate_norm_moment"})
    for layer in range(3):
        counts = stats.layer("gate_norm_moment", layer)[:, 0, 0]
        assert (counts == 0).sum() >= 4
        for name in MOMENTS:
            value = stats.layer(name, layer)
            assert np.array_equal(value.reshape(8, -1).any(axis=1), counts > 0), name


def test_gates_count_squared(qwen, tmp_path):
    """Renormalised top-1 gates are 1: nothing is weighted then. Otherwise weighted moments are smaller."""
    single = calibrate(Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path, num_experts_per_tok=1)), SQUARE, MOMENTS)
    both = calibrate(qwen, SQUARE, MOMENTS)
    for side in ("input", "channel"):
        np.testing.assert_allclose(
            single.layer(f"gated_{side}_square", 0), single.layer(f"{side}_square", 0), rtol=1e-6
        )
        assert (both.layer(f"gated_{side}_square", 0) < both.layer(f"{side}_square", 0)).all()


def test_the_kernel_equals_a_loop_and_leaves_its_input_alone():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x, gates = torch.randn(11, 5, generator=generator).to(dtype), torch.rand(11, generator=generator)
        before = x.clone()
        ours = second_moments(x, gates, rows=4)
        assert torch.equal(x, before)
        plain, gated = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
        for row, g in zip(x.double(), gates.double(), strict=True):
            plain += row * row
            gated += g * g * row * row
        torch.testing.assert_close(ours, torch.stack([plain, gated]), rtol=1e-13, atol=0.0)


def test_wide_grams_are_put_together_from_strips(tmp_path):
    """Wider than a strip and no multiple of it; three experts take turns, so that sums go to the file and come back."""
    generator = torch.Generator().manual_seed(0)
    grams = Grams(DiskArrays(tmp_path, named=False), 0, torch.device("cpu"))
    grams.create("input_gram", 4, 600)
    grams.create("channel_gram", 4, 70)
    totals = {name: torch.zeros(4, width, width, dtype=torch.float64) for name, width in SIZES.items()}
    for expert in (0, 2, 2, 0, 3, 0):
        for name, width in SIZES.items():
            x = torch.randn(9, width, generator=generator)
            grams.add(name, expert, x)
            totals[name][expert] += x.double().T @ x.double()
    for name, total in totals.items():
        expected = total / torch.tensor([27, 1, 18, 9], dtype=torch.float64)[:, None, None]
        found = grams.finished(name, (27, 0, 18, 9))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
        assert not found[1].any()


SIZES = {"input_gram": 600, "channel_gram": 70}


def test_float32_sums_keep_their_bound():
    """|error| <= n 2^-24 (G_ii G_jj)^0.5 over n tokens, also where products of one sign add up."""
    tokens, generator = 8192, torch.Generator().manual_seed(0)
    x = torch.rand(tokens, 24, generator=generator) + 0.5
    grams = Grams(DiskArrays(None, named=False), 0, torch.device("cpu"))
    grams.create("channel_gram", 1, 24)
    for piece in x.split(64):
        grams.add("channel_gram", 0, piece)
    exact = (x.double().T @ x.double() / tokens).numpy()
    error = np.abs(grams.finished("channel_gram", (tokens,))[0] - exact)
    scale = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
    assert (error <= tokens * 2.0**-24 * scale).all()
    assert error.max() <= 20 * tokens**0.5 * 2.0**-24 * scale.max()


def test_they_are_memory_maps_fresh_and_recalled(qwen, tmp_path, monkeypatch):
    loose = calibrate(qwen, SQUARE, MOMENTS, effort=Effort(scratch=tmp_path))
    assert_mapped(loose, range(3))
    assert not list(tmp_path.iterdir()), "they vanish with their maps"
    fresh = calibrate(qwen, SQUARE, MOMENTS | {"block_cosine"}, cache=tmp_path)
    assert_mapped(fresh, range(3))
    assert len(list(tmp_path.glob("*.npy"))) == 6 and not list(tmp_path.glob(".*"))
    monkeypatch.setattr(StreamedPass, "run", lambda *args: pytest.fail("measured again"))
    again = calibrate(qwen, SQUARE, MOMENTS, cache=tmp_path)
    assert_mapped(again, range(3))
    assert_bits(again, fresh, MOMENTS)
    assert_bits(again, loose, MOMENTS)
    path = next(iter(sorted(tmp_path.glob("*channel_gram.1.*.npy"))))
    np.testing.assert_array_equal(np.load(path), fresh.layer("channel_gram", 1))
    alone = calibrate(qwen, SQUARE, {"channel_square"}, cache=tmp_path)
    assert set(alone.values) == {"channel_square"}


def test_their_size_is_known_before(qwen, tmp_path, monkeypatch):
    needs = GRAMS | {"token_gram", "token_logits", "block_cosine"}
    calibrate(qwen, SQUARE, needs, cache=tmp_path, sampled_tokens=40)
    size = disk_bytes(qwen.inventory, needs, 40)
    header = 128
    assert size == sum(path.stat().st_size - header for path in tmp_path.glob("*.npy"))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=size - 1))
    monkeypatch.setattr(StreamedPass, "_embed", lambda *args: pytest.fail("begun without room"))
    with pytest.raises(StatsError, match="GiB are free; free space"):
        calibrate(qwen, SQUARE, needs, cache=tmp_path / "other" / "folder", sampled_tokens=40, dtype="float64")


def test_a_damaged_map_is_measured_again(qwen, tmp_path):
    first = calibrate(qwen, SQUARE, GRAMS, cache=tmp_path)
    path = sorted(tmp_path.glob("*input_gram.2.*.npy"))[0]
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.unlink()  # the map of `first` keeps the old bytes
    path.write_bytes(content)
    assert_bits(calibrate(qwen, SQUARE, GRAMS, cache=tmp_path), first, GRAMS)


def test_other_statistics_are_the_same_to_the_last_bit(qwen):
    for effort in (Effort(), replace(MANY_BLOCKS, output_bytes=64 * 4 * 8 * 17)):
        for needs in (ORDINARY, ORDINARY - {"token_gram", "output_cosine", "output_cka", "dense_output_mean"}):
            without = calibrate(qwen, RAGGED, needs, sampled_tokens=20, effort=effort)
            beside = calibrate(qwen, RAGGED, needs | MOMENTS, sampled_tokens=20, effort=effort)
            assert_bits(beside, without, needs)


@pytest.mark.parametrize(
    ("beside", "passed"),
    [
        (set(), 2 * 63),
        ({"token_gram", "gate_norm_moment"}, 8 * 20 + 2 * 43),
        ({"token_gram", "removal_loss"}, 8 * 20 + 3 * 43),
    ],
    ids=["routed", "sampled", "removal"],
)
def test_no_expert_runs_twice_on_a_token(qwen, monkeypatch, beside, passed):
    rows = []
    inner = bench.calibration.layers.expert_pass.gated_mlp
    monkeypatch.setattr(
        bench.calibration.layers.expert_pass, "gated_mlp", lambda x, *rest: (rows.append(len(x)), inner(x, *rest))[1]
    )
    calibrate(qwen, RAGGED, MOMENTS | beside, sampled_tokens=20)
    assert sum(rows) == 3 * passed


def test_one_gram_is_in_memory(qwen, monkeypatch):
    """Whatever the number of experts: the sums lie in their file, from which they are read again for each block."""
    seen = []
    inner = Grams.add
    monkeypatch.setattr(Grams, "add", lambda self, *rest: (inner(self, *rest), seen.append(self._flat.numel()))[0])
    calibrate(qwen, RAGGED, GRAMS, effort=MANY_BLOCKS)
    assert set(seen) == {64 * 64}


@pytest.mark.parametrize(
    "plans", [[LayerPlan(experts=(0, 2, 3, 7))] * 3, [LayerPlan(drop="moe"), LayerPlan(), LayerPlan()]]
)
def test_sequential_moments_are_those_of_the_compressed_model(qwen, tmp_path, plans):
    decide = Fixed(plans)
    stats = calibrate(qwen, SQUARE, MOMENTS, decide=decide)
    one_shot = calibrate(qwen, SQUARE, MOMENTS)
    np.testing.assert_array_equal(stats.layer("input_gram", 0), one_shot.layer("input_gram", 0))
    assert not np.allclose(stats.layer("input_square", 2), one_shot.layer("input_square", 2), rtol=1e-3)
    half = Plan.of(qwen.inventory, [*plans[:2], LayerPlan()])
    compressed = Checkpoint.open(apply(qwen, half, tmp_path / "compressed"))
    theirs = calibrate(compressed, SQUARE, MOMENTS)
    for name in MOMENTS:
        value = theirs.layer(name, 2)
        np.testing.assert_allclose(stats.layer(name, 2), value, rtol=1e-4, atol=1e-5 * np.abs(value).max())


def test_a_rule_sees_them(qwen):
    class Curious(LayerwiseDecision):
        def __call__(self, layer, stats):
            seen.append((layer, stats.layer("channel_gram", layer).shape))
            return super().__call__(layer, stats)

    seen = []
    decide = Curious(REAP(keep=0.5), qwen.inventory)
    calibrate(qwen, SQUARE, GRAMS | REAP().needs, decide=decide)
    assert seen == [(layer, (8, 32, 32)) for layer in range(3)]


def test_experts_behind_a_map_see_the_tokens_of_all_their_rows(mapped):
    expected = behind_a_map(load_model(mapped.path), 1, mapped.inventory.layers[1].expert_map, 2)
    for beside in (set(), {"token_gram"}):
        stats = calibrate(mapped, RAGGED, MOMENTS | beside, sampled_tokens=20, effort=MANY_BLOCKS)
        for name, value in expected.items():
            assert stats.layer(name, 1).shape == value.shape
            atol = 2e-6 * np.abs(value).max()
            np.testing.assert_allclose(stats.layer(name, 1), value, rtol=1e-5, atol=atol, err_msg=name)


def behind_a_map(model, index, places, experts):
    """Return the moments of one layer from loops over tokens, the gates of rows that lead to one expert added up."""
    block = model.model.layers[index].mlp
    seen = []
    block.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    block.register_forward_hook(lambda module, args, output: seen.append(args[0][0]))
    rows = [[] for _ in range(experts)]
    for window in RAGGED.windows:
        seen.clear()
        with torch.no_grad():
            model.model(torch.tensor([window]), use_cache=False)
        (_, weights, chosen), inputs = seen
        for token, x in enumerate(inputs.double()):
            for expert in range(experts):
                gates = [
                    w
                    for w, row in zip(weights[token].tolist(), chosen[token].tolist(), strict=True)
                    if places[row] == expert
                ]
                if gates:
                    with torch.no_grad():
                        gate, up = (block.experts.gate_up_proj[expert].double() @ x).chunk(2)
                    rows[expert].append((sum(gates), x, torch.nn.functional.silu(gate) * up))
    assert any(len(row) > 2 for row in rows)
    values = {}
    for place, side in ((1, "input"), (2, "channel")):
        values[f"{side}_square"] = [sum(row[place] ** 2 for row in own) / len(own) for own in rows]
        values[f"gated_{side}_square"] = [sum((row[0] * row[place]) ** 2 for row in own) / len(own) for own in rows]
        values[f"{side}_gram"] = [sum(torch.outer(row[place], row[place]) for row in own) / len(own) for own in rows]
    return {name: torch.stack(value).numpy() for name, value in values.items()}


def test_values_that_are_not_finite_are_refused_and_leave_no_file(tmp_path):
    folder = tiny_checkpoint("mixtral", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.1" in name and name.endswith("experts.3.w3.weight"))
    tensors[name][0] = 3e38  # finite as a weight, not as what it makes of an input
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(StatsError, match="layer 1: channel_gram is not finite"):
        calibrate(Checkpoint.open(folder), SQUARE, {"channel_gram"}, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
