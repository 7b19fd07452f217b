"""Estimates against sums written out for a model whose shapes are known, and the refusal where the disk is too small."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from bench.cli import app
from bench.running.estimate import DEVICES, DISK, FACTORISING, UTILISATION, Estimate, estimate, refuse_small_disk
from bench.settings.stage_settings import CalibrationConfig
from methods.framework.cost import cost_of
from methods.framework.errors import RefusedError, UnknownNameError
from methods.framework.inventory import Inventory
from methods.registry import method
from tests.support.inventories import toy_inventory

SETTINGS = CalibrationConfig(sequences=4, length=16, sampled_tokens=8, moments="by_layer")


class Free(NamedTuple):
    free: int


def told(name: str, inventory: Inventory, settings: CalibrationConfig = SETTINGS) -> Estimate:
    chosen = method(name)
    return estimate(chosen, inventory, settings, chosen.stages)


def shapes(inventory: Inventory) -> tuple[int, int, int, int]:
    """Return D, F, E and the number of MoE layers."""
    layer = inventory.layers[inventory.moe_layers[0]]
    width = next(layer.with_role("expert.gate")).shape[0]
    return inventory.hidden, width, layer.experts, len(inventory.moe_layers)


def test_one_pass_over_the_corpus_without_the_head() -> None:
    inventory = toy_inventory()
    one = told("reap", inventory)
    head = 2 * 4 * 16 * inventory.vocab * inventory.hidden
    assert one.tokens == 64
    assert one.flops == 4 * cost_of(inventory, 16).flops - head
    assert one.scratch == one.factorised == 0
    assert told("weight_norm", inventory).flops == told("weight_norm", inventory).tokens == 0, "weights need no tokens"


def test_gram_matrices_take_room_and_factorisations() -> None:
    inventory = toy_inventory()
    hidden, width, experts, layers = shapes(inventory)
    top_k = inventory.layers[inventory.moe_layers[0]].top_k
    matrices = 4 * experts * (hidden**2 + width**2)
    one = told("gptq", inventory)
    assert one.scratch == matrices, "those of one layer"
    kept = SETTINGS.model_copy(update={"moments": "kept"})
    assert told("gptq", inventory, kept).scratch == layers * matrices
    assert one.flops - told("reap", inventory).flops == 2 * 64 * top_k * layers * (hidden**2 + width**2)
    own = 2 * (hidden**3 * 4 // 3 + width * hidden**2) + width**3 * 4 // 3 + hidden * width**2
    assert one.factorised == layers * experts * own
    assert told("whitened_svd", inventory).factorised > one.factorised


def test_every_expert_runs_on_sampled_tokens() -> None:
    inventory = toy_inventory()
    hidden, width, experts, layers = shapes(inventory)
    one = told("naee_greedy", inventory)
    assert one.flops - told("reap", inventory).flops == layers * 2 * 8 * (
        3 * experts * hidden * width + experts**2 * hidden
    )
    assert not one.uncounted
    assert told("moe_i2", inventory).uncounted and told("mobe", inventory).uncounted


def test_gradients_take_the_model_and_no_states_on_disk() -> None:
    inventory = toy_inventory()
    long = SETTINGS.model_copy(update={"sequences": 1 << 15, "hidden_mib": 1})
    one = told("heapr", inventory, long)
    assert one.flops == 3 * (1 << 15) * cost_of(inventory, 16).flops
    assert one.scratch == 0
    assert told("reap", inventory, long).scratch == (1 << 15) * 16 * inventory.hidden * 4
    assert one.memory - cost_of(inventory).bytes < told("reap", inventory, long).memory


def test_hours_are_computing_and_the_disk() -> None:
    device = DEVICES["h100"]
    one = Estimate(1, 3.6e15, 3.6e13, 0, 0, 10**9, False)
    seconds = 3.6e15 / (989.4e12 * UTILISATION) + 3.6e13 / (66.9e12 * FACTORISING) + 3e9 / DISK
    assert one.hours(device) == pytest.approx(seconds / 3600)


def test_a_disk_that_is_too_small_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Estimate(1, 0, 0, 0, scratch, 0, False) for scratch in (1000, 5)]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Free(999))
    with pytest.raises(RefusedError, match="free space"):
        refuse_small_disk(found, tmp_path / "not" / "there")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Free(1000))
    refuse_small_disk(found, tmp_path)


def test_the_command_tells_each_method_and_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    methods = [word for name in ("reap", "gptq:group=32", "moe_i2") for word in ("--method", name)]
    words = ["run", "--model", "pocket-mixtral", *methods, "--estimate", "--on", "h200", "--store", str(store)]
    app(words, standalone_mode=False)
    output = capsys.readouterr().out
    lines = {line.split()[0]: line for line in output.splitlines() if line.strip()}
    assert {"reap", "gptq", "moe_i2"} <= lines.keys()
    assert lines["moe_i2"].rstrip().endswith("+")
    assert "H200" in output and not store.exists()
    with pytest.raises(UnknownNameError, match="h100"):
        app(["run", "--model", "pocket-mixtral", *methods, "--estimate", "--on", "abacus"], standalone_mode=False)
