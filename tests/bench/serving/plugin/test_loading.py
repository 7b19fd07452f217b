"""Weights of experts in a form of their own on their way into vLLM: what the plug-in takes out of the stream, without vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.stored_module import CompressedExperts, Shard
from bench.experts.whole import stored_expert
from bench.laws.served import write
from bench.serving.plugin.loading import ExpertWeights
from methods.framework.errors import CheckpointError
from methods.framework.forms import has_own_form
from methods.framework.inventory import EXPERT_ROLES
from tests.support.published import CORRECTION, published
from tests.support.tiny import tiny_checkpoint

OWN = ("channels", "factored", "shared_base", "bases", "packed_channels", "mapped_factored")


def opened(kind: str, folder: Path, family: str = "qwen3_moe") -> Checkpoint:
    source = Checkpoint.open(tiny_checkpoint(family))
    return Checkpoint.open(write(source, kind, folder / kind))


def stream(checkpoint: Checkpoint) -> list[tuple[str, Tensor]]:
    return [(entry.name, checkpoint.read(entry)) for entry in checkpoint.inventory.tensors()]


def modules(checkpoint: Checkpoint, shard: Shard) -> dict[int, CompressedExperts]:
    layers = enumerate(checkpoint.inventory.layers)
    return {i: CompressedExperts(layer, F.silu, shard=shard) for i, layer in layers if has_own_form(layer.form)}


def outputs(checkpoint: Checkpoint, layer: int, hidden_TD: Tensor, experts: int) -> Tensor:
    """Return the sum of the outputs of all experts, each with weight 1, from whole matrices."""
    total = torch.zeros_like(hidden_TD)
    for expert in range(experts):
        whole = stored_expert(checkpoint, layer, expert)
        total += (F.silu(hidden_TD @ whole.gate_FD.T) * (hidden_TD @ whole.up_FD.T)) @ whole.down_DF.T
    return total


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("kind", OWN)
def test_modules_get_what_is_stored_and_nothing_else(kind: str, size: int, tmp_path: Path) -> None:
    checkpoint = opened(kind, tmp_path)
    hidden_TD = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    sums: dict[int, Tensor] = {}
    for rank in range(size):
        own = modules(checkpoint, Shard(rank, size))
        rest = dict(ExpertWeights(checkpoint.inventory, own, values=True).rest(stream(checkpoint)))
        routed = {e.name for i in own for e in checkpoint.inventory.layers[i].tensors if e.role.startswith("expert.")}
        assert set(rest) == {e.name for e in checkpoint.inventory.tensors()} - routed
        for index, module in own.items():
            module.finish()
            index_TK = torch.arange(module.num_experts).expand(5, -1)
            with torch.no_grad():
                part = module(hidden_TD, index_TK, torch.ones(index_TK.shape))
            sums[index] = sums.get(index, torch.zeros_like(part)) + part
    assert sums, "this kind should have layers of its own form"
    for index, found in sums.items():
        expected = outputs(checkpoint, index, hidden_TD, checkpoint.inventory.layers[index].experts)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["packed4", "packed8", "packed_counts"])
def test_integers_pass_as_values_or_as_they_are(kind: str, tmp_path: Path) -> None:
    checkpoint = opened(kind, tmp_path, family="mixtral")
    sent = stream(checkpoint)
    rest = dict(ExpertWeights(checkpoint.inventory, {}, values=True).rest(sent))
    assert not any(name.endswith(("_packed", "_scale", "_shape")) for name in rest)
    names = {"gate_FD": "w1", "up_FD": "w3", "down_DF": "w2"}
    for layer in checkpoint.inventory.moe_layers:
        for expert in range(checkpoint.inventory.layers[layer].experts):
            whole = stored_expert(checkpoint, layer, expert)
            for field, name in names.items():
                key = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"
                assert torch.equal(rest.pop(key), getattr(whole, field))
    assert set(rest) == {e.name for e in checkpoint.inventory.tensors() if not e.role.startswith(EXPERT_ROLES)}
    untouched = list(ExpertWeights(checkpoint.inventory, {}, values=False).rest(sent))
    assert [(name, id(tensor)) for name, tensor in untouched] == [(name, id(tensor)) for name, tensor in sent]


def test_the_parts_of_a_matrix_may_come_in_any_order(tmp_path: Path) -> None:
    checkpoint = opened("packed4", tmp_path)
    sent = stream(checkpoint)
    expected = dict(ExpertWeights(checkpoint.inventory, {}, values=True).rest(sent))
    kind_by_kind = sorted(sent, key=lambda one: one[0].rpartition(".")[2])  # as files hold them, wide elements first
    for order in (reversed(sent), kind_by_kind):
        found = dict(ExpertWeights(checkpoint.inventory, {}, values=True).rest(order))
        assert set(found) == set(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("kind", ["factored", "packed4", "packed_channels"])
def test_what_is_not_ours_reaches_the_stock_loader_in_the_type_of_the_file(kind: str, tmp_path: Path) -> None:
    """Correction biases in float32 beside a model in bfloat16, which no bfloat16 can tell apart."""
    source = published("deepseek_v3", tmp_path / "source")
    checkpoint = Checkpoint.open(write(source, kind, tmp_path / kind))
    sent = dict(stream(checkpoint))
    rest = dict(ExpertWeights(checkpoint.inventory, modules(checkpoint, Shard()), values=True).rest(sent.items()))
    passed = [name for name in rest if ".experts." not in name]
    assert all(rest[name] is sent[name] for name in passed)
    biases = [rest[name] for name in passed if name.endswith(CORRECTION)]
    assert len(biases) == 2
    for bias in biases:
        assert bias.dtype == torch.float32
        assert len(bias.unique()) == len(bias) > len(bias.bfloat16().unique())


def test_layers_of_other_devices_are_dropped_and_missing_tensors_are_named(tmp_path: Path) -> None:
    checkpoint = opened("factored", tmp_path)
    sent = stream(checkpoint)
    rest = list(ExpertWeights(checkpoint.inventory, {}, values=False).rest(sent))
    assert not any(name.endswith((".left", ".right")) for name, _ in rest)
    lost = next(name for name, _ in sent if name.endswith(".left"))
    weights = ExpertWeights(checkpoint.inventory, modules(checkpoint, Shard()), values=False)
    with pytest.raises(CheckpointError, match=f"1 tensors of experts are not in the files: {lost}"):
        list(weights.rest([(name, tensor) for name, tensor in sent if name != lost]))


def test_configs_with_values_put_aside_reach_other_processes() -> None:
    """VLLM pickles the config for the processes of further devices; nothing is registered with transformers here."""
    import pickle

    from bench.serving.plugin import latent_configs as configs

    for model_type in configs.LATENT:
        document = {"model_type": model_type, "per_layer_config": {"1": {"n_routed_experts": 4}}, "vocab_size": 99}
        config = configs._class_of(model_type).from_dict(document)
        again = pickle.loads(pickle.dumps(config))
        assert type(again) is type(config) and configs.document_of(again)["per_layer_config"] == {
            "1": {"n_routed_experts": 4}
        }
    with pytest.raises(AttributeError, match="no attribute 'Unknown'"):
        _ = configs.Unknown
