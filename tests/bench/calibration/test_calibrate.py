"""The streamed pass against the plain transformers model, hooks and loops; sequential propagation; the cache."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bench.calibration.cache
from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.decide import LayerwiseDecision
from bench.calibration.streaming import StreamedPass
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods.criterion import REAP
from methods.framework.errors import CheckpointError, ConfigError, StatsError, UnknownNameError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE
from tests.support.streamed_pass import (
    NEEDS,
    RAGGED,
    SQUARE,
    Fixed,
    assert_same,
    model_states,
    plain_model,
    streamed_states,
)
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

STREAMED = {name for name in NEEDS if CATALOGUE[name].cost not in ("weights", "gradient")}
ROUTED = {name for name in NEEDS if CATALOGUE[name].cost == "routed"}
SPECTRA = {"weight_spectrum", "whitened_spectrum"}
CHANNELS = {"channel_magnitude", "channel_energy", "channel_peak", "input_magnitude", "routed_tokens"}
INSIDE = {"input_square", "channel_square", "gated_input_square", "gated_channel_square", "input_gram", "channel_gram"}
PIECES = Effort(cka_tokens=13, output_bytes=64 * 4 * 8 * 17, expert_rows=7)
BLOCKS = Effort(hidden_bytes=5 * 64 * 4 * 30, expert_rows=3, output_bytes=64 * 4 * 3 * 17)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_equal_the_plain_forward(tiny, family):
    checkpoint = tiny(family)
    theirs = model_states(plain_model(checkpoint), RAGGED)
    ours = streamed_states(checkpoint, RAGGED)
    scale = theirs.abs().amax(dim=(1, 2), keepdim=True).clamp_min(1.0)
    assert ((ours - theirs) / scale).abs().max() <= 1e-5
    assert (theirs[1:] - theirs[:-1]).abs().amax(dim=(1, 2)).min() > 0.1, "a layer does nothing, so nothing was tested"


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_hooks_and_loops(tiny, expected, family):
    """All experts on some tokens and on all; routed tokens alone; with the next best expert, in several blocks."""
    checkpoint = tiny(family)
    runs = [
        (20, NEEDS, PIECES),
        (63, STREAMED, Effort(cka_tokens=13)),
        (20, ROUTED - {"removal_loss"}, Effort()),
        (20, ROUTED, BLOCKS),
    ]
    for sampled, needs, effort in runs:
        stats = calibrate(checkpoint, RAGGED, needs, sampled_tokens=sampled, effort=effort)
        assert stats.tokens == 63 and set(stats.values) == needs
        values = expected(family, sampled, 13)
        assert set(values) == NEEDS, "a statistic has no reference"
        for name in needs - {"hidden_cosine"}:
            scope = checkpoint.inventory.moe_layers if CATALOGUE[name].scope == "moe" else range(3)
            assert set(values[name]) == set(scope)
            for index, value in values[name].items():
                assert_near(stats.layer(name, index), value, name, f"{name} of layer {index}")
        if "hidden_cosine" in needs:
            np.testing.assert_allclose(stats.model("hidden_cosine"), values["hidden_cosine"], rtol=1e-5, atol=1e-6)


def assert_near(measured, value, name, label):
    assert measured.dtype == (np.float32 if CATALOGUE[name].on_disk else np.float64)
    assert measured.shape == np.shape(value)
    largest = np.abs(value).max()
    if name not in CHANNELS:
        np.testing.assert_allclose(measured, value, rtol=1e-5, atol=1e-6 * max(1.0, largest), err_msg=label)
    if name in CHANNELS | SPECTRA | INSIDE:
        rtol = 2e-5 if name in CHANNELS else 1e-5
        np.testing.assert_allclose(measured, value, rtol=rtol, atol=2e-6 * largest, err_msg=label)
        assert largest > 1e-3
    if name in SPECTRA:
        assert (np.diff(measured, axis=-1) <= 0).all()


def test_sliding_window_is_the_model_own(tiny, tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path, sliding_window=5))
    theirs = model_states(plain_model(checkpoint), SQUARE)
    assert (streamed_states(checkpoint, SQUARE) - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert (streamed_states(tiny("mixtral"), SQUARE) - theirs).abs().max() > 1e-2, "the window changes nothing here"


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_batches_and_spilling_change_no_value(tiny, family, tmp_path):
    checkpoint = tiny(family)
    whole = calibrate(checkpoint, RAGGED, NEEDS, dtype="float64")
    spilled = calibrate(
        checkpoint, RAGGED, NEEDS, dtype="float64", effort=Effort(hidden_bytes=5 * 64 * 8 * 30, scratch=tmp_path)
    )
    pieces = calibrate(checkpoint, RAGGED, STREAMED, dtype="float64", effort=Effort(batch_tokens=1, expert_rows=3))
    assert_same(spilled, whole, rtol=1e-6, names=STREAMED)
    assert_same(pieces, whole, rtol=1e-6, names=STREAMED)
    for other in (spilled, pieces):
        for index in checkpoint.inventory.moe_layers:
            counts = other.layer("gate_norm_moment", index)[:, 0, 0]
            assert np.array_equal(counts, whole.layer("gate_norm_moment", index)[:, 0, 0])
            assert counts.sum() == 63 * 2
    assert_same(calibrate(checkpoint, RAGGED, NEEDS), whole)


def test_boundary_sample_is_evenly_spaced(qwen):
    states = streamed_states(qwen, SQUARE)[:, [0, 24, 48, 72]].double()
    unit = states / states.norm(dim=-1, keepdim=True)
    expected = torch.einsum("atd,btd->ab", unit, unit) / 4
    stats = calibrate(qwen, SQUARE, {"hidden_cosine"}, effort=Effort(boundary_tokens=4))
    np.testing.assert_allclose(stats.model("hidden_cosine"), expected.numpy(), rtol=1e-6)


def test_weights_need_no_corpus_and_agree_with_the_pass(qwen):
    alone = calibrate(qwen, None, {"weight_norm"})
    assert alone.tokens == 0
    assert_same(alone, calibrate(qwen, SQUARE, {"weight_norm", "block_cosine"}), rtol=1e-12, names={"weight_norm"})


def test_idle_experts_are_measured_as_zero_and_their_weights_anyway(tiny):
    stats = calibrate(tiny("mixtral"), Corpus.of([[3, 4]]), NEEDS)
    counts = stats.layer("gate_norm_moment", 0)[:, 0, 0]
    assert counts.sum() == 4 and (counts == 0).sum() >= 4
    assert (stats.layer("weight_norm", 0) > 0).all()


@pytest.mark.parametrize(
    ("family", "plans"),
    [
        (
            "qwen3_moe",
            [LayerPlan(experts=(0, 2, 3, 7)), LayerPlan(experts=(1, 4, 5, 6)), LayerPlan(experts=(0, 1, 2, 3))],
        ),
        ("deepseek_v3", [LayerPlan(), LayerPlan(experts=(0, 2, 5, 7)), LayerPlan(experts=(1, 3, 4, 6))]),
        ("qwen2_moe", [LayerPlan(experts=(0, 2, 4, 6), top_k=1)] * 3),
    ],
)
def test_sequential_equals_a_model_that_was_really_compressed(tiny, family, plans, tmp_path):
    checkpoint = tiny(family)
    decide = Fixed(plans)
    stats = calibrate(checkpoint, SQUARE, STREAMED, decide=decide)
    final = streamed_states(checkpoint, SQUARE, Fixed(plans))
    compressed = apply(checkpoint, Plan.of(checkpoint.inventory, plans), tmp_path / "compressed")
    theirs = model_states(plain_model(Checkpoint.open(compressed)), SQUARE)
    assert (final - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    one_shot = calibrate(checkpoint, SQUARE, STREAMED)
    first, last = checkpoint.inventory.moe_layers[0], checkpoint.inventory.moe_layers[-1]
    np.testing.assert_array_equal(stats.layer("gate_norm_moment", first), one_shot.layer("gate_norm_moment", first))
    assert not np.allclose(stats.layer("gate_norm_moment", last), one_shot.layer("gate_norm_moment", last), rtol=1e-3)
    assert set(decide.seen) == set(checkpoint.inventory.moe_layers)
    with pytest.raises(StatsError):
        decide.seen[first].layer("gate_norm_moment", last)


@pytest.mark.parametrize("spill", [False, True])
def test_sequential_drops(qwen, spill, tmp_path):
    plans = [LayerPlan(drop="moe"), LayerPlan(drop="block"), LayerPlan()]
    hidden_bytes = 5 * 64 * 4 * 50 if spill else 2**30
    states = streamed_states(qwen, SQUARE, Fixed(plans), hidden_bytes=hidden_bytes, scratch=tmp_path)
    model = plain_model(qwen)
    first = model.model.layers[0]
    first.post_attention_layernorm = torch.nn.Identity()
    first.mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    model.model.layers[1].register_forward_hook(lambda module, args, output: args[0])
    theirs = model_states(model, SQUARE)
    assert torch.equal(states[1], states[2])
    assert (states - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_sequential_reap_is_its_own_rule(qwen):
    decide = LayerwiseDecision(REAP(keep=0.5), qwen.inventory)
    stats = calibrate(qwen, SQUARE, REAP().needs, decide=decide)
    plans = REAP(keep=0.5).plan(qwen.inventory, stats).layers
    again = calibrate(qwen, SQUARE, REAP().needs, decide=Fixed(plans))
    assert_same(again, stats, names=REAP().needs)
    assert decide.digest != LayerwiseDecision(REAP(keep=0.25), qwen.inventory).digest


def test_cache_returns_what_was_measured_and_serves_subsets(qwen, tmp_path, monkeypatch):
    first = calibrate(qwen, SQUARE, NEEDS, cache=tmp_path)
    monkeypatch.setattr(StreamedPass, "run", lambda *args: pytest.fail("measured again"))
    again = calibrate(qwen, SQUARE, NEEDS, cache=tmp_path)
    assert_same(again, first, rtol=0.0)
    assert (again.tokens, again.meta) == (first.tokens, first.meta)
    subset = calibrate(qwen, SQUARE, {"block_cosine"}, cache=tmp_path)
    assert set(subset.values) == {"block_cosine"}
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".npy"}


@pytest.mark.parametrize(
    "change", ["corpus", "dtype", "propagation", "decide", "boundary", "needs", "model", "router", "code"], ids=str
)
def test_every_change_misses_the_cache(qwen, tmp_path, monkeypatch, change):
    def measure(**changes):
        settings = {
            "checkpoint": qwen,
            "corpus": SQUARE,
            "needs": {"block_cosine"},
            "cache": tmp_path / "cache",
            **changes,
        }
        return calibrate(**settings)

    sequential = {"decide": Fixed([LayerPlan(drop="moe")] * 3)}
    measure(**(sequential if change == "decide" else {}))
    files = len(list((tmp_path / "cache").iterdir()))
    if change == "corpus":
        measure(corpus=Corpus.of(tiny_tokens(seed=1), SQUARE.name))
    elif change == "dtype":
        measure(dtype="float64")
    elif change == "propagation":
        measure(**sequential)
    elif change == "decide":
        other = Fixed([LayerPlan()] * 3)
        other.digest = "other"
        measure(decide=other)
    elif change == "boundary":
        measure(effort=Effort(boundary_tokens=7))
    elif change == "needs":
        measure(needs={"block_cosine", "moe_io_cosine"})
    elif change == "model":
        folder = tiny_checkpoint("qwen3_moe", tmp_path / "model")
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][0] += 1e-3
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        measure(checkpoint=Checkpoint.open(folder))
    elif change == "router":  # a family file that was corrected
        router = replace(qwen.inventory.router, renormalise=not qwen.inventory.router.renormalise)
        measure(checkpoint=replace(qwen, inventory=replace(qwen.inventory, router=router)))
    else:
        monkeypatch.setattr("bench.calibration.cache.code_digest", lambda: "edited")
        measure()
    assert len(list((tmp_path / "cache").iterdir())) == files + 1


@pytest.mark.parametrize("sequential", [False, True])
def test_an_edited_statistic_is_measured_again_and_those_beside_it_are_not(qwen, tmp_path, monkeypatch, sequential):
    """In sequential propagation every later layer hangs on what the rule saw, so there nothing is found again."""
    decide = Fixed([LayerPlan(drop="moe")] * 3) if sequential else None
    first = calibrate(qwen, SQUARE, {"block_cosine", "moe_io_cosine"}, cache=tmp_path, decide=decide)
    inner = bench.calibration.cache.statistic_digest
    edited = lambda name: "edited" if name == "moe_io_cosine" else inner(name)  # noqa: E731  # a name for one call
    monkeypatch.setattr(bench.calibration.cache, "statistic_digest", edited)
    runs = []
    run = StreamedPass.run
    monkeypatch.setattr(StreamedPass, "run", lambda self, *rest: (runs.append(1), run(self, *rest))[1])
    for needs, due in (({"block_cosine"}, sequential), ({"block_cosine", "moe_io_cosine"}, True)):
        runs.clear()
        assert_same(calibrate(qwen, SQUARE, needs, cache=tmp_path, decide=decide), first, rtol=0.0, names=needs)
        assert bool(runs) == due
        runs.clear()
        calibrate(qwen, SQUARE, needs, cache=tmp_path, decide=decide)
        assert not runs


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_damaged_cache_files_are_measured_again(qwen, tmp_path, damage):
    needs = {"block_cosine", "gate_norm_moment"}
    first = calibrate(qwen, SQUARE, needs, cache=tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    whole = bytearray(path.read_bytes())
    if damage == "flipped":
        whole[-5] ^= 64
    foreign = b"not a safetensors file"
    path.write_bytes({"cut": whole[: len(whole) // 2], "flipped": whole, "foreign": foreign, "empty": b""}[damage])
    assert_same(calibrate(qwen, SQUARE, needs, cache=tmp_path), first, rtol=0.0, names=needs)
    assert_same(calibrate(qwen, SQUARE, needs, cache=tmp_path), first, rtol=0.0, names=needs)


def test_weights_are_measured_once_for_all_corpora_and_rules_see_them(qwen, tmp_path, monkeypatch):
    needs = {"gate_norm_moment", "weight_norm", "router_row_gram"}
    first = calibrate(qwen, SQUARE, needs, cache=tmp_path)
    monkeypatch.setattr("bench.calibration.streaming.measure_weights", lambda *args: pytest.fail("measured again"))
    decide = Fixed([LayerPlan(experts=(0, 1, 2, 3))] * 3)
    second = calibrate(qwen, RAGGED, needs, cache=tmp_path, decide=decide)
    assert_same(second, first, rtol=0.0, names={"weight_norm", "router_row_gram"})
    assert second.tokens == 63
    for layer in range(3):
        np.testing.assert_array_equal(decide.seen[layer].layer("weight_norm", layer), first.layer("weight_norm", layer))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    folder = tiny_checkpoint("mixtral", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "layers.1" in name and name.endswith("experts.3.w2.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"1 of .* values of {name} are NaN"):
        calibrate(Checkpoint.open(folder), SQUARE, {"gate_norm_moment"})


def test_requests_that_make_no_sense_are_refused(qwen):
    with pytest.raises(UnknownNameError, match="block_cosine"):
        calibrate(qwen, SQUARE, {"block_cosin"})
    with pytest.raises(ConfigError, match="need a corpus"):
        calibrate(qwen, None, {"block_cosine"})
    with pytest.raises(StatsError, match="token id 160"):
        calibrate(qwen, Corpus.of([[1, 160]]), {"block_cosine"})
    with pytest.raises(UnknownNameError, match="float32"):
        calibrate(qwen, SQUARE, {"block_cosine"}, dtype="float23")
    assert calibrate(qwen, None, set()).values == {}


def test_config_and_tensors_that_disagree_are_refused(tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path))
    object.__setattr__(checkpoint.inventory, "config", {**checkpoint.inventory.config, "attention_bias": True})
    with pytest.raises(CheckpointError, match=r"self_attn\.q_proj\.bias"):
        calibrate(checkpoint, SQUARE, {"block_cosine"})


def test_progress_counts_layers(qwen):
    calls = []
    calibrate(qwen, SQUARE, {"router_probability"}, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
