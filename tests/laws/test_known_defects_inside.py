"""One test for each error known in public codes that change experts inside, which would fail if ours had it.

Where another file tests it already:

* magnitude pruning keeps the smaller weights: ``test_of_two_weights_the_larger_stays`` (test_sparsity)
* an expert without tokens has no moments and no scales:
  ``test_an_expert_without_tokens_is_made_from_its_weights_alone`` (test_inside)
* MoBE's mean of a matrix is lost: ``test_mean_of_a_matrix_is_not_lost`` (test_shared_bases)
* few bits are evaluated with other values than are stored: ``test_one_set_of_values`` (test_inside_bits)
* columns of a base are chosen for each batch: ``test_columns_of_a_base_are_those_with_the_largest_outputs`` (test_inside)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_of
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods import registry
from methods.d2_moe import fisher_weights
from methods.framework.cost import cost, cost_of
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats
from tests.methods.framework.test_cost import DEEPSEEK
from tests.support.inside_slowly import drawn_moments
from tests.support.masking import logits
from tests.support.tiny import tiny_checkpoint, tiny_model, tiny_tokens

CORPUS = Corpus.of(tiny_tokens(6, 20).tolist(), "random ids")
EXPERTS, WIDTH = 8, 32

Opened = Callable[[str], tuple[Checkpoint, Stats]]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Return a function from a family to a tiny checkpoint and its statistics."""

    @cache
    def made(family: str) -> tuple[Checkpoint, Stats]:
        checkpoint = Checkpoint.open(tiny_checkpoint(family, tmp_path_factory.mktemp(family)))
        return checkpoint, calibrate(checkpoint, CORPUS, wanted())

    return made


def wanted() -> set[str]:
    """Return what the methods that change experts inside read and write."""
    found = {"fisher_mass"}  # what d2_moe reads with another knob
    for name in registry.names():
        if registry.method_class(name).stages & {"channels", "rank", "bits"}:
            found |= registry.method(name).measured
    assert found <= set(CATALOGUE)
    return found


def decided(name: str, opened: tuple[Checkpoint, Stats], **knobs: Any) -> Plan:
    return registry.method(name, **knobs).plan(opened[0].inventory, opened[1])


# CAMERA


def test_channels_are_cut_not_zeroed(opened: Opened, tmp_path: Path) -> None:
    """CAMERA's code sets weights to zero, so that nothing becomes smaller."""
    checkpoint, stats = opened("olmoe")
    plan = decided("camera_p", (checkpoint, stats), keep=0.5)
    before, after = cost_of(checkpoint.inventory), cost(plan, checkpoint.inventory)
    assert after.channels == before.channels // 2 and after.routed_parameters == before.routed_parameters // 2
    out = apply(checkpoint, plan, tmp_path / "out", moments=stats)
    sizes = [(path / "model.safetensors").stat().st_size for path in (checkpoint.path, out)]
    assert before.bytes - after.bytes == 4 * (before.routed_parameters // 2)
    assert sizes[0] - sizes[1] == pytest.approx(before.bytes - after.bytes, rel=0.02), "headers differ a little"


def test_gates_are_those_of_the_family(opened: Opened) -> None:
    """CAMERA's code renormalises the gates of every model; DeepSeek's and OLMoE's do not add up to 1."""
    for family, renormalises in (("mixtral", True), ("qwen3_moe", True), ("olmoe", False), ("deepseek_v2", False)):
        checkpoint, stats = opened(family)
        model = load_model(checkpoint.path)
        index = checkpoint.inventory.moe_layers[-1]
        energy_EF = np.zeros((EXPERTS, WIDTH))
        sums = []

        def seen(module: Any, inputs: Any, energy_EF: Any = energy_EF, sums: Any = sums) -> None:
            x_TD, chosen_TK, weights_TK = inputs
            sums.append(weights_TK.sum(dim=1))
            for x_D, rows, gates in zip(x_TD, chosen_TK.tolist(), weights_TK.tolist(), strict=True):
                for expert, gate in zip(rows, gates, strict=True):
                    before_F, up_F = (module.gate_up_proj[expert] @ x_D).chunk(2)
                    output_F = gate * torch.nn.functional.silu(before_F) * up_F
                    size_F = module.down_proj[expert].square().sum(dim=0)
                    energy_EF[expert] += (size_F * output_F.square()).double().numpy()

        model.model.layers[index].mlp.experts.register_forward_pre_hook(seen)
        with torch.no_grad():
            model(tiny_tokens(6, 20))
        assert bool(torch.allclose(torch.cat(sums), torch.ones(120))) == renormalises
        np.testing.assert_allclose(stats.layer("channel_energy", index), energy_EF, rtol=1e-3, atol=1e-6)


def test_energies_of_many_tokens_do_not_drown(opened: Opened) -> None:
    """Sums kept in bfloat16 stop growing after a few hundred equal terms."""
    checkpoint, stats = opened("olmoe")
    often = Corpus.of([list(window) for window in tiny_tokens(6, 20).tolist()] * 40, "the same again and again")
    again = calibrate(checkpoint, often, {"channel_energy", "channel_peak"})
    for index in checkpoint.inventory.moe_layers:
        np.testing.assert_allclose(
            again.layer("channel_energy", index), 40 * stats.layer("channel_energy", index), rtol=1e-4
        )
        np.testing.assert_allclose(again.layer("channel_peak", index), stats.layer("channel_peak", index), rtol=1e-4)


# HEAPr


def test_how_often_an_expert_is_chosen_does_not_enter(opened: Opened) -> None:
    """Means, not sums: a corpus that is read twice gives the same curvatures."""
    checkpoint, stats = opened("qwen2_moe")
    twice = Corpus.of([list(window) for window in tiny_tokens(6, 20).tolist()] * 2, "twice")
    again = calibrate(checkpoint, twice, {"channel_curvature"})
    for index in checkpoint.inventory.moe_layers:
        found, before = again.layer("channel_curvature", index), stats.layer("channel_curvature", index)
        np.testing.assert_allclose(found, before, rtol=1e-3, atol=1e-9 * float(before.max()))


@pytest.mark.parametrize("name", ["camera_p", "heapr"])
def test_the_order_of_neurons_does_not_matter(name: str, opened: Opened, tmp_path: Path) -> None:
    """Neurons of an expert in another order are the same expert: the same ones are cut, and the logits are the same."""
    checkpoint, stats = opened("mixtral")
    model, orders = tiny_model("mixtral"), {}
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for expert in range(EXPERTS):
                order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(10 * index + expert))
                orders[index, expert] = order.tolist()
                gate, up = layer.mlp.experts.gate_up_proj[expert].clone().chunk(2)
                layer.mlp.experts.gate_up_proj[expert] = torch.cat([gate[order], up[order]])
                layer.mlp.experts.down_proj[expert] = layer.mlp.experts.down_proj[expert][:, order].clone()
    model.save_pretrained(tmp_path / "permuted")
    other = Checkpoint.open(tmp_path / "permuted")
    plan = decided(name, (checkpoint, stats), keep=0.5)
    method = registry.method(name, keep=0.5)
    moved = method.plan(other.inventory, calibrate(other, CORPUS, method.needs))
    for index, (ours, theirs) in enumerate(zip(plan.layers, moved.layers, strict=True)):
        assert ours.channels is not None and theirs.channels is not None
        for expert, (own, found) in enumerate(zip(ours.channels, theirs.channels, strict=True)):
            assert sorted(orders[index, expert][channel] for channel in found) == list(own)
    one, two = apply(checkpoint, plan, tmp_path / "one"), apply(other, moved, tmp_path / "two")
    torch.testing.assert_close(
        logits(load_model(one), tiny_tokens()), logits(load_model(two), tiny_tokens()), rtol=1e-4, atol=1e-5
    )


# D²-MoE


def test_fisher_mass_is_not_multiplied_by_frequency(opened: Opened) -> None:
    """The code weighs experts by mass times frequency, the paper by mass."""
    checkpoint, stats = opened("qwen3_moe")
    plan = decided("d2_moe", (checkpoint, stats), keep=0.5, weights="expert")
    for index in checkpoint.inventory.moe_layers:
        mass_E = stats.layer("fisher_mass", index).sum(axis=1)
        counts_E = stats.layer("routed_tokens", index)
        rank = plan.layers[index].rank
        assert rank is not None and rank.base is not None
        np.testing.assert_allclose(rank.base.weights, mass_E / mass_E.sum(), rtol=1e-9)
        weighed_E = mass_E * counts_E
        assert not np.allclose(rank.base.weights, weighed_E / weighed_E.sum(), rtol=1e-2)
    assert fisher_weights(np.zeros((4, 3))) == (0.25,) * 4


def test_the_base_is_weighed_by_entry_and_not_by_frequency(opened: Opened, tmp_path: Path) -> None:
    checkpoint, stats = opened("qwen3_moe")
    plan = decided("d2_moe", (checkpoint, stats), keep=0.5)
    out = Checkpoint.open(apply(checkpoint, plan, tmp_path / "out", moments=stats))
    for index in checkpoint.inventory.moe_layers:
        gates = {
            e.expert: checkpoint.read(e).double() for e in checkpoint.inventory.layers[index].with_role("expert.gate")
        }
        weight_EFD = torch.stack([gates[expert] for expert in range(len(gates))])
        square_EFD = torch.tensor(stats.layer("entry_fisher", index)[:, :, 0], dtype=torch.float64)
        counts_E11 = torch.from_numpy(stats.layer("routed_tokens", index))[:, None, None]
        (entry,) = out.inventory.layers[index].with_role("expert.shared_gate")
        found_FD = out.read(entry).double()

        def base(mass_EFD: torch.Tensor, weight_EFD: torch.Tensor = weight_EFD) -> torch.Tensor:
            return (mass_EFD * weight_EFD).sum(dim=0) / mass_EFD.sum(dim=0)

        torch.testing.assert_close(found_FD, base(square_EFD), rtol=1e-4, atol=1e-6)
        by_expert_E11 = square_EFD.sum(dim=(1, 2), keepdim=True)
        for other_FD in (base(square_EFD * counts_E11), base(by_expert_E11), weight_EFD.mean(dim=0)):
            assert (found_FD - other_FD).abs().max() > 1e-3


# Quantisation of MoE models


@pytest.mark.parametrize("name", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_routers_and_shared_experts_keep_their_bits(name: str, family: str, opened: Opened, tmp_path: Path) -> None:
    """A router in 4 bits chooses other experts."""
    checkpoint, stats = opened(family)
    plan = decided(name, (checkpoint, stats), keep=0.25)
    out = Checkpoint.open(apply(checkpoint, plan, tmp_path / "out", moments=stats))
    before = {entry.name: entry for entry in checkpoint.inventory.tensors() if not entry.role.startswith("expert.")}
    after = {entry.name: entry for entry in out.inventory.tensors() if not entry.role.startswith("expert.")}
    assert before == after, "the same names, shapes and types"
    changed = {
        entry.role for key, entry in before.items() if not torch.equal(checkpoint.read(entry), out.read(after[key]))
    }
    reached = {"norm.mlp", "router.weight", "shared.gate", "shared.up"}
    reached |= {"shared.scalar_gate"} if family == "qwen2_moe" else set()
    assert changed == (reached if name == "awq" else set())


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_router_without_its_scale_would_choose_otherwise(family: str, opened: Opened, tmp_path: Path) -> None:
    """What forgetting the router costs, which shows that the tests of AWQ's routing can fail."""
    checkpoint, _ = opened(family)
    moments = drawn_moments(checkpoint.inventory)  # of inputs that differ more than those of a random model
    plan = decided("awq", (checkpoint, moments), keep=0.25)
    out = load_model(apply(checkpoint, plan, tmp_path / "out", moments=moments))
    source = load_model(checkpoint.path)
    inputs_TD = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(source.model.layers, out.model.layers, strict=True):
        if hasattr(ours.mlp, "gate"):
            with torch.no_grad():
                x_TD = theirs.post_attention_layernorm(inputs_TD)
                scaled, forgotten = theirs.mlp.gate(x_TD)[2], ours.mlp.gate(x_TD)[2]
                plain = ours.mlp.gate(ours.post_attention_layernorm(inputs_TD))[2]
            assert torch.equal(scaled, plain) and not torch.equal(forgotten, plain)


def test_the_group_serves_matrices_whose_inputs_are_no_power_of_two() -> None:
    """1408 channels are 11 groups of 128; the dense layer of 10944, which are no whole number of groups, is left alone."""
    inventory = family_of(DEEPSEEK).inventory(DEEPSEEK)
    plan = registry.method("rtn").plan(inventory, Stats({}))
    groups = {layer.bits.group if layer.bits else None for layer in plan.layers[1:]}
    assert plan.layers[0].bits is None and groups == {128}
    routed = 27 * 64 * 3 * 1408 * 2048
    before, after = cost_of(inventory), cost(plan, inventory)
    shapes = 27 * 64 * 3 * 16  # two integers of 8 bytes for each matrix
    assert before.bytes - after.bytes == 2 * routed - (routed // 2 + 2 * routed // 128 + shapes)
