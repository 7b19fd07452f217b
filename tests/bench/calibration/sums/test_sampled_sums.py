"""Statistics of sampled tokens: memory maps, the cache beside them, planted experts, and how often experts run."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import bench.calibration.layers.expert_pass
from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.streaming import StreamedPass
from bench.calibration.sums.disk_array import DiskArrays, recalled
from bench.checkpoint.checkpoint import Checkpoint
from bench.text.corpus import Corpus
from methods.framework.errors import ConfigError, StatsError
from tests.support.streamed_pass import NEEDS, RAGGED, SQUARE, assert_same
from tests.support.tiny import FAMILIES, tiny_checkpoint

KEPT_BY_TOKEN = {"token_gram", "token_logits"}
SAMPLED = KEPT_BY_TOKEN | {"dense_output_mean", "output_cosine", "output_cka"}
CKA = {"weight_cka", "output_cka", "output_cosine"}


def edited(family, folder, edit):
    """Return a tiny checkpoint after ``edit`` was called with (tensors, layer, names of the matrices by expert)."""
    path = tiny_checkpoint(family, folder)
    inventory = Checkpoint.open(path).inventory
    tensors = load_file(path / "model.safetensors")
    for index in inventory.moe_layers:
        names = [{} for _ in range(8)]
        for entry in inventory.layers[index].with_role("expert.gate", "expert.up", "expert.down"):
            names[entry.expert][entry.role] = entry.name
        edit(tensors, names)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return Checkpoint.open(path)


def assert_mapped(stats, layers):
    for name in KEPT_BY_TOKEN:
        for layer in layers:
            value = stats.layer(name, layer)
            assert isinstance(value, np.memmap) and value.dtype == np.float32 and not value.flags.writeable


def test_they_are_memory_maps_without_a_cache_and_leave_nothing_behind(qwen, tmp_path):
    stats = calibrate(qwen, SQUARE, SAMPLED, effort=Effort(scratch=tmp_path))
    assert_mapped(stats, range(3))
    assert stats.layer("token_gram", 0).shape == (96, 8, 8) and stats.layer("token_logits", 0).shape == (96, 8)
    assert not list(tmp_path.iterdir())
    assert np.isfinite(stats.layer("token_gram", 2)).all(), "the map outlives its file"


def test_they_are_memory_maps_with_a_cache_fresh_and_recalled(qwen, tmp_path, monkeypatch):
    fresh = calibrate(qwen, SQUARE, SAMPLED, cache=tmp_path, sampled_tokens=40)
    assert_mapped(fresh, range(3))
    assert len(list(tmp_path.glob("*.npy"))) == 6 and not list(tmp_path.glob(".*"))
    monkeypatch.setattr(StreamedPass, "run", lambda *args: pytest.fail("measured again"))
    again = calibrate(qwen, SQUARE, SAMPLED, cache=tmp_path, sampled_tokens=40)
    assert_mapped(again, range(3))
    assert {Path(again.layer("token_gram", layer).filename).parent for layer in range(3)} == {tmp_path}
    assert_same(again, fresh, rtol=0.0, names=SAMPLED)
    assert again.meta == fresh.meta and fresh.meta["sampled_tokens"] == 40 and fresh.meta["cka_tokens"] == 40


def test_only_what_matters_is_in_the_key(qwen, tmp_path):
    def count(needs, **settings):
        calibrate(qwen, SQUARE, needs, cache=tmp_path, **settings)
        return len(list(tmp_path.glob("*.safetensors")))

    assert count({"block_cosine", "token_gram", "output_cka"}) == 1
    assert count({"block_cosine"}, sampled_tokens=7, effort=Effort(cka_tokens=5)) == 1, "no token is sampled for it"
    assert count({"token_gram"}, effort=Effort(cka_tokens=5)) == 1, "the Gram compares no tokens"
    assert count({"token_gram"}, sampled_tokens=96) == 1, "the corpus has no more tokens"
    assert count({"token_gram"}, sampled_tokens=50) == 2
    assert count({"output_cka"}, effort=Effort(cka_tokens=5)) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damaged_maps_are_measured_again_but_only_if_asked_for(qwen, tmp_path, monkeypatch, damage):
    first = calibrate(qwen, SQUARE, {"token_gram", "block_cosine"}, cache=tmp_path)
    path = sorted(tmp_path.glob("*token_gram.1.*.npy"))[0]
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.unlink()  # the map of `first` keeps the old bytes
    if damage != "missing":
        path.write_bytes(whole if damage == "flipped" else whole[:-8])
    with monkeypatch.context() as patch:
        patch.setattr(StreamedPass, "run", lambda *args: pytest.fail("measured again"))
        calibrate(qwen, SQUARE, {"block_cosine"}, cache=tmp_path)
    for _ in range(2):
        assert_same(calibrate(qwen, SQUARE, {"token_gram"}, cache=tmp_path), first, rtol=0.0, names={"token_gram"})


def test_a_pass_that_fails_leaves_no_file(tmp_path):
    def spoil(tensors, names):
        tensors[names[2]["expert.up"]][0] = 3e38  # finite as a weight, not as an output

    checkpoint = edited("qwen3_moe", tmp_path / "model", spoil)
    with pytest.raises(StatsError, match="layer 0: token_gram is not finite"):
        calibrate(checkpoint, SQUARE, {"token_gram"}, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_writing_and_checking_take_no_memory(tmp_path):
    rows, pieces = np.ones((256, 64, 64), dtype=np.float32), 16
    arrays = DiskArrays(tmp_path, named=True)
    tracemalloc.start()
    array = arrays.create("token_gram", 0, (256 * pieces, 64, 64))
    for _ in range(pieces):
        array.append(rows)
    assert array.finished()[-1, -1, -1] == 1.0
    settled = arrays.settle(lambda name, layer, digest: tmp_path / f"{name}.{layer}.npy")
    arrays.close()
    (entry,) = settled.values()
    found = recalled(tmp_path / entry["file"], entry["blake3"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None and found.shape == (4096, 64, 64)
    assert peak < 3 * rows.nbytes, "64 MiB were written and read in pieces of 4 MiB"
    assert recalled(tmp_path / entry["file"], "0" * 64) is None


def test_experts_run_once_on_a_token(qwen, monkeypatch):
    """Rows that pass through experts, in each of the three layers of 63 tokens, top-2 of 8 experts."""
    counted = []
    inner = bench.calibration.layers.expert_pass.gated_mlp
    monkeypatch.setattr(
        bench.calibration.layers.expert_pass, "gated_mlp", lambda x, *rest: (counted.append(len(x)), inner(x, *rest))[1]
    )

    def rows(needs, sampled=4096):
        counted.clear()
        calibrate(qwen, RAGGED, needs, sampled_tokens=sampled)
        return sum(counted) / 3

    assert rows({"gate_norm_moment", "routed_output_mean", "coactivation"}) == 2 * 63
    assert rows({"token_gram", "output_cka", "gate_norm_moment"}) == 8 * 63
    assert rows({"token_gram", "removal_loss"}) == 8 * 63
    assert rows({"token_gram"}, sampled=20) == 8 * 20 + 2 * 43
    assert rows({"token_gram", "removal_loss"}, sampled=20) == 8 * 20 + 3 * 43
    assert rows({"removal_loss"}) == 3 * 63
    assert rows({"token_logits"}) == 2 * 63


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_duplicates_are_alike_and_nothing_else_is(family, tmp_path):
    def plant(tensors, names):
        generator = torch.Generator().manual_seed(7)
        order = torch.randperm(32, generator=generator)
        for role in ("expert.gate", "expert.up"):
            tensors[names[5][role]] = tensors[names[2][role]][order].clone()
        tensors[names[5]["expert.down"]] = tensors[names[2]["expert.down"]][:, order].clone()

    checkpoint = edited(family, tmp_path, plant)
    stats = calibrate(checkpoint, SQUARE, CKA)
    for layer in checkpoint.inventory.moe_layers:
        for name in CKA:
            value = stats.layer(name, layer)
            assert value[2, 5] == pytest.approx(1.0, abs=1e-6)
            np.testing.assert_allclose(np.diagonal(value), 1.0, atol=1e-6)
            np.testing.assert_allclose(value, value.T, atol=1e-12)
            others = value - np.eye(8)
            others[2, 5] = others[5, 2] = 0.0
            assert others.max() < 0.97, name


def test_similarity_ignores_the_order_and_sign_of_neurons(qwen, tmp_path):
    def permute(tensors, names):
        order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
        for role in ("expert.gate", "expert.up"):
            tensors[names[3][role]] = tensors[names[3][role]][order].clone()
        tensors[names[3]["expert.down"]] = tensors[names[3]["expert.down"]][:, order].clone()
        tensors[names[1]["expert.up"]] *= -1.0
        tensors[names[1]["expert.down"]] *= -1.0

    changed = edited("qwen3_moe", tmp_path, permute)
    assert_same(calibrate(changed, SQUARE, CKA), calibrate(qwen, SQUARE, CKA), rtol=2e-6, names=CKA)


def test_a_dead_expert_resembles_none(tmp_path):
    def kill(tensors, names):
        for name in names[4].values():
            tensors[name].zero_()

    checkpoint = edited("olmoe", tmp_path, kill)
    stats = calibrate(checkpoint, SQUARE, NEEDS)
    for name in CKA:
        assert not stats.layer(name, 1)[4].any() and stats.layer(name, 1)[3].sum() > 1
    assert stats.layer("residual_gate_norm", 1)[4] == 0 and not stats.layer("routed_output_mean", 1)[4].any()


def test_what_the_norm_undoes_changes_no_turn(tmp_path):
    """EASY-EP's turn is that of the residual stream: a norm's weight, undone in all that reads it, is not part of it."""
    plain = tiny_checkpoint("olmoe", tmp_path / "plain")
    inventory, tensors = Checkpoint.open(plain).inventory, load_file(plain / "model.safetensors")
    for index in inventory.moe_layers:
        layer = inventory.layers[index]
        (norm,) = layer.with_role("norm.mlp")
        scale = torch.linspace(0.25, 4.0, inventory.hidden)
        tensors[norm.name] *= scale
        for entry in layer.with_role("router.weight", "expert.gate", "expert.up"):
            tensors[entry.name] /= scale
    other = tiny_checkpoint("olmoe", tmp_path / "scaled")
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    name = "residual_gate_norm"
    stats = [calibrate(Checkpoint.open(path), SQUARE, {name}, dtype="float64") for path in (plain, other)]
    for index in inventory.moe_layers:
        np.testing.assert_allclose(stats[1].layer(name, index), stats[0].layer(name, index), rtol=1e-5)


def test_windows_beside_them_change_no_token(qwen):
    """What is seen of a token depends on its own window only: the pass adds no padding."""
    added = {"removal_loss", "routed_norm", "logit_gram", "coactivation", "residual_gate_norm"}
    together = calibrate(qwen, RAGGED, added | KEPT_BY_TOKEN, dtype="float64")
    order = sorted(RAGGED.windows, key=len)
    alone = [calibrate(qwen, Corpus.of([window]), added | KEPT_BY_TOKEN, dtype="float64") for window in order]
    for layer in range(3):
        for name in KEPT_BY_TOKEN:
            parts = np.concatenate([stats.layer(name, layer) for stats in alone])
            np.testing.assert_allclose(together.layer(name, layer), parts, rtol=1e-5, atol=1e-5)
        for name in added:
            total = sum(stats.layer(name, layer) for stats in alone)
            np.testing.assert_allclose(together.layer(name, layer), total, rtol=1e-9, err_msg=name)


def test_samples_that_make_no_sense_are_refused(qwen):
    with pytest.raises(ConfigError, match="sampled_tokens=0"):
        calibrate(qwen, SQUARE, {"token_gram"}, sampled_tokens=0)
    with pytest.raises(ConfigError, match="needs two or more"):
        calibrate(qwen, SQUARE, {"output_cka"}, effort=Effort(cka_tokens=1))
