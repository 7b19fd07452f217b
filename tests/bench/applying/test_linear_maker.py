"""Linear layers beside the experts: zeros by their definition, few bits as the format's library reads them, scales undone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import Tensor
from transformers import AutoModelForCausalLM

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import ALL_PART_NAMES, stored_linear
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.framework.errors import PlanError
from methods.framework.inside import LINEAR_MOMENTS, QUANTISATION_MOMENTS, SPARSITY_MOMENTS, Quantisation, Sparsity
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import LINEAR_ROLES, all_sites, linears, whole_linear
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from tests.support.masking import logits
from tests.support.sparsity_reference import masked_slowly
from tests.support.tiny import tiny_model, tiny_tokens

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "latent attention": ("deepseek_v2", {}),
    "latent queries": ("deepseek_v2", {"q_lora_rank": 24, "attention_bias": True}),
    "gated shared expert, biases": ("qwen2_moe", {}),
    "norms of queries": ("qwen3_moe", {}),
    "fewer values": ("mixtral", {"num_key_value_heads": 1}),
}
_FOLDER = TemporaryDirectory(prefix="linears-")
NAMES = frozenset().union(*SPARSITY_MOMENTS.values(), *QUANTISATION_MOMENTS.values(), *LINEAR_MOMENTS.values())


@cache
def measured(model: str, dtype: torch.dtype = torch.float32) -> tuple[Checkpoint, Stats]:
    family, settings = MODELS[model]
    drawn = tiny_model(family, **settings)
    with torch.no_grad():
        for name, parameter in drawn.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    folder = Path(_FOLDER.name) / f"{model}-{dtype}"
    drawn.to(dtype).save_pretrained(folder)
    source = Checkpoint.open(folder)
    return source, calibrate(source, Corpus.of(tiny_tokens().tolist()), NAMES)


def everywhere(source: Checkpoint, layer: LayerPlan) -> Plan:
    return Plan.of(source.inventory, [layer] * len(source.inventory.layers))


def linear_values(source: Checkpoint, out: Checkpoint) -> list[tuple[str, int, Tensor, Tensor]]:
    """Return role, layer, old and new values of every linear layer beside the experts."""
    found = []
    for index, (before, after) in enumerate(zip(source.inventory.layers, out.inventory.layers, strict=True)):
        new = {e.role: stored_linear(out, e) for e in map(whole_linear, after.tensors) if e is not None}
        new |= {e.role: out.read(e) for e in linears(after.tensors)}
        found += [(e.role, index, source.read(e), new[e.role]) for e in linears(before.tensors)]
    return found


@pytest.mark.parametrize("model", ["latent queries", "gated shared expert, biases"])
def test_zeros_are_where_the_definition_puts_them(model: str, tmp_path: Path) -> None:
    source, moments = measured(model)
    rule = Sparsity(scope="all", share=0.5, pattern="2:4", kernel="wanda")
    out = Checkpoint.open(
        apply(source, everywhere(source, LayerPlan(sparsity=rule)), tmp_path / "out", moments=moments)
    )
    roles = set()
    for role, index, old, new in linear_values(source, out):
        layer = source.inventory.layers[index]
        ((part, site),) = ((part, site) for part, site in all_sites(layer) if role in site.roles)
        norms = np.sqrt(moments.layer(f"{part}_square", index)[site.row])
        np.testing.assert_allclose(new.numpy(), masked_slowly(old.double().numpy(), norms, rule), rtol=1e-6)
        roles.add(role)
    expected = {e.role for e in source.inventory.tensors() if e.role in LINEAR_ROLES}
    assert roles == expected and len(roles) >= 7
    for entry in source.inventory.tensors():
        if entry.role not in LINEAR_ROLES and not entry.role.startswith("expert."):
            assert torch.equal(source.read(entry), out.read(entry)), f"{entry.name} is none of them"


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kernel", ["rtn", "gptq", "awq"])
def test_one_set_of_values(kernel: str, symmetric: bool, tmp_path: Path) -> None:
    """What is written, what the model computes with, and what the library of the format reads: bit for bit."""
    source, moments = measured("latent queries", torch.bfloat16)
    rule = Quantisation(scope="all", group=8, kernel=kernel, symmetric=symmetric, act_order=kernel == "gptq")  # type: ignore[arg-type]  # one of three words
    out = Checkpoint.open(apply(source, everywhere(source, LayerPlan(bits=rule)), tmp_path / "out", moments=moments))
    model = load_model(out.path, dtype=torch.bfloat16)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=4, strategy="group", group_size=8, symmetric=symmetric)
    )
    seen = 0
    for layer in out.inventory.layers:
        stored = {entry.role: entry for entry in layer.tensors if entry.expert is None}
        for whole in filter(None, map(whole_linear, layer.tensors)):
            parts = {
                n: out.read(stored[f"{whole.role}.{p}"])
                for p, n in ALL_PART_NAMES.items()
                if f"{whole.role}.{p}" in stored
            }
            library = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
            held = model.get_parameter(source.family.placement(whole).name)
            assert len(parts) == (3 if symmetric else 4)
            assert torch.equal(library, stored_linear(out, whole)) and torch.equal(library, held.detach())
            seen += 1
    assert seen == 5 * 3 + 3 * 3, "five matrices of each attention, three of each network that every token passes"


@pytest.mark.parametrize("model", MODELS)
def test_what_awq_scales_is_undone(model: str, tmp_path: Path) -> None:
    """With 8 bits the outputs stay what they were; a scale that nothing undoes would change them by much more."""
    source, moments = measured(model)
    inputs = tiny_tokens(2, 12, seed=3)
    dense = load_model(source.path)
    before = logits(dense, inputs)
    error = {}
    for kernel in ("rtn", "awq"):
        rule = Quantisation(scope="all", bits=8, group=8, kernel=kernel)  # type: ignore[arg-type]  # one of two words
        plan = everywhere(source, LayerPlan(bits=rule))
        with realised(dense, source.inventory, plan, moments):
            error[kernel] = float((logits(dense, inputs) - before).abs().mean())
        out = Checkpoint.open(apply(source, plan, tmp_path / kernel, moments=moments))
    assert 0 < error["awq"] < 2 * error["rtn"] < 0.15 * float(before.abs().mean())
    changed = {
        e.role
        for e in source.inventory.tensors()
        if len(e.shape) == 1 and not torch.equal(source.read(e), out.read(e)) and e.layer is not None
    }
    expected = {"norm.attention", "norm.mlp"}
    if model == "latent queries":
        expected |= {"attention.q_a_norm"}
    if model.startswith("latent"):
        expected |= {"attention.kv_a_norm"}
    if model.startswith("gated"):
        expected |= {"attention.v_bias"}
    assert changed == expected
    for role, index, old, new in linear_values(source, out):
        norm = {"attention.q": "norm.attention", "shared.gate": "norm.mlp", "dense.gate": "norm.mlp"}.get(role)
        if norm is not None:
            entry = next(source.inventory.layers[index].with_role(norm))
            scaled = old * (source.read(entry) / out.read(next(out.inventory.layers[index].with_role(norm))))
            assert (new - scaled).abs().max() < 0.006 * scaled.abs().max(), f"{role} of layer {index}"
    assert torch.equal(logits(dense, inputs), before), "the model is what it was"


def test_gptq_makes_up_for_its_roundings_site_by_site(tmp_path: Path) -> None:
    source, moments = measured("gated shared expert, biases")
    loss = {}
    for kernel in ("rtn", "gptq"):
        rule = Quantisation(scope="all", bits=4, group=8, kernel=kernel)  # type: ignore[arg-type]  # one of two words
        plan = everywhere(source, LayerPlan(bits=rule))
        out = Checkpoint.open(apply(source, plan, tmp_path / kernel, moments=moments))
        for role, index, old, new in linear_values(source, out):
            layer = source.inventory.layers[index]
            ((part, site),) = ((part, site) for part, site in all_sites(layer) if role in site.roles)
            gram = torch.tensor(moments.layer(f"{part}_gram", index)[site.gram]).view(site.inputs, site.inputs)
            change = (new.float() - old).double()
            loss[kernel, role, index] = float(((change @ gram.double()) * change).sum())
    roles = [key[1:] for key in loss if key[0] == "rtn"]
    assert all(loss["gptq", *one] < loss["rtn", *one] for one in roles)


def test_stock_transformers_loads_it(tmp_path: Path) -> None:
    source, moments = measured("norms of queries")
    plan = everywhere(source, LayerPlan(bits=Quantisation(scope="all", bits=4, group=8)))
    out = apply(source, plan, tmp_path / "out", moments=moments)
    stock = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    inputs = tiny_tokens(2, 12, seed=3)
    assert torch.allclose(logits(stock, inputs), logits(load_model(out), inputs), atol=1e-5)


@pytest.mark.parametrize(
    "rule", [{"bits": Quantisation(scope="all", group=8, kernel="awq")}, {"sparsity": Sparsity(scope="all", share=0.5)}]
)
def test_an_attention_is_slimmed_where_the_experts_are_dropped(rule: dict[str, object], tmp_path: Path) -> None:
    source, moments = measured("latent queries")
    layers = [LayerPlan(**rule), LayerPlan(drop="moe", **rule), LayerPlan(**rule)]  # type: ignore[arg-type]  # statements
    plan = Plan.of(source.inventory, layers)
    out = Checkpoint.open(apply(source, plan, tmp_path / "out", moments=moments))
    assert out.inventory == result(plan, source.inventory) and out.inventory.layers[1].mlp == "none"
    model, inputs = load_model(source.path), tiny_tokens(2, 12, seed=3)
    with realised(model, source.inventory, plan, moments):
        assert torch.allclose(logits(model, inputs), logits(load_model(out.path), inputs), atol=1e-5)


def test_what_is_in_few_bits_is_not_slimmed_again(tmp_path: Path) -> None:
    source, moments = measured("norms of queries")
    plan = everywhere(source, LayerPlan(bits=Quantisation(scope="all", bits=8, group=8)))
    out = Checkpoint.open(apply(source, plan, tmp_path / "out", moments=moments))
    with pytest.raises(PlanError, match=r"layer 0: its linear layers are stored with few bits already"):
        everywhere(out, LayerPlan(sparsity=Sparsity(scope="all", share=0.5)))
    kept = LayerPlan(experts=(0, 1, 2, 3))
    again = Checkpoint.open(apply(out, everywhere(out, kept), tmp_path / "again"))
    for role, index, old, new in linear_values(source, again):
        assert (old - new).abs().max() < 0.05 * old.abs().max(), (role, index)
