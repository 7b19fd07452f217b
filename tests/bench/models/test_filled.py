"""Checkpoints with experts in another form: the loaded model is the realised one, and damaged files are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.stored_module import CompressedExperts
from bench.families.form_config import FORM_KEY
from bench.models.load import load_model
from methods.framework.compose import compose
from methods.framework.errors import CheckpointError, PlanError
from methods.framework.inside import LowRank, SharedBase
from methods.framework.inventory import BYTES_PER_ELEMENT
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from tests.support.inside_plans import FORMS, SELECTIONS, everywhere, fitting
from tests.support.inside_slowly import EXPERTS, HIDDEN, drawn_moments
from tests.support.masking import logits
from tests.support.tiny import FAMILIES, tiny_tokens
from tests.support.tiny_sources import tiny_source

TOKENS = tiny_tokens(2, 12)
OWN = [name for name in FORMS if name not in ("4 bits", "8 bits", "scaled inputs", "sparse in 4 bits")]
"""Forms for which the loaded model has a module of its own."""


@cache
def opened(family: str, **settings: Any) -> tuple[Checkpoint, Stats]:
    """Return a tiny checkpoint and drawn moments of it, means that stand for constants among them."""
    source = tiny_source(family, **settings)
    moments = drawn_moments(source.inventory)
    means = np.random.default_rng(3).normal(size=(EXPERTS, HIDDEN))
    layers = tuple(means if layer.mlp == "moe" else None for layer in source.inventory.layers)
    return source, Stats({**moments.values, "routed_output_mean": layers}, moments.tokens)


@cache
def original(family: str) -> tuple[PreTrainedModel, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the tiny model itself, its logits, and its tensors: each test leaves it as it was."""
    model = load_model(opened(family, dtype=torch.float64)[0].path, torch.float64)
    model.set_experts_implementation("eager")  # in float64, so that two products may be compared with one
    return model, logits(model, TOKENS), {name: tensor.clone() for name, tensor in model.state_dict().items()}


CELLS = [
    (family, form, ("all", "mapped")[(row + column) % 2])
    for row, family in enumerate(FAMILIES)
    for column, form in enumerate(FORMS)
]
"""Every form in every family, and both selections with every form and in every family."""


@pytest.mark.parametrize(("family", "form", "selection"), CELLS)
def test_the_loaded_model_is_the_realised_one(family: str, form: str, selection: str, tmp_path: Path) -> None:
    source, moments = opened(family, dtype=torch.float64)
    plan = everywhere(source.inventory, fitting(form, SELECTIONS[selection]))
    written = load_model(apply(source, plan, tmp_path / "out", moments=moments), torch.float64)
    modules = [module for module in written.modules() if isinstance(module, CompressedExperts)]
    assert len(modules) == (len(source.inventory.moe_layers) if form in OWN else 0)
    written.set_experts_implementation("eager")
    model, plain, before = original(family)
    with realised(model, source.inventory, plan, moments):
        inside = logits(model, TOKENS)
    assert (inside - plain).abs().max() > 1e-3, "the plan changes nothing: the comparison would be empty"
    torch.testing.assert_close(logits(written, TOKENS), inside, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("form", FORMS)
def test_rounded_values_are_those_of_the_file_in_memory_too(form: str, tmp_path: Path) -> None:
    source, moments = opened("qwen2_moe", dtype=torch.bfloat16)
    plan = everywhere(source.inventory, fitting(form, SELECTIONS["merged"]))
    written = load_model(apply(source, plan, tmp_path / "out", moments=moments))
    model = load_model(source.path)
    with realised(model, source.inventory, plan, moments):
        torch.testing.assert_close(logits(model, TOKENS), logits(written, TOKENS), rtol=1e-5, atol=1e-5)


def test_a_full_rank_base_is_the_model(tmp_path: Path) -> None:
    source, moments = opened("deepseek_v2")
    base = SharedBase(members=(0, 3, 7), weights=(0.5, 0.25, 0.25))
    rule = LowRank(kernel="whitened", ranks=((32, 32, 32),) * EXPERTS, base=base)
    out = apply(source, everywhere(source.inventory, LayerPlan(rank=rule)), tmp_path / "out", moments=moments)
    torch.testing.assert_close(
        logits(load_model(out), TOKENS), logits(load_model(source.path), TOKENS), rtol=1e-4, atol=1e-5
    )


CHOICE = (1, 2, 5, 6)
LATER = ("channels", "factors", "channels and factors", "4 bits", "channels in 4 bits")
"""Forms of which some experts may be taken afterwards."""


@pytest.mark.parametrize("form", LATER)
def test_experts_of_a_written_checkpoint_are_selected_as_by_one_plan(form: str, tmp_path: Path) -> None:
    source, moments = opened("deepseek_v3")
    first = everywhere(source.inventory, FORMS[form])
    middle = Checkpoint.open(apply(source, first, tmp_path / "middle", moments=moments))
    second = everywhere(middle.inventory, LayerPlan(experts=CHOICE))
    last = Checkpoint.open(apply(middle, second, tmp_path / "last"))
    both = compose(first, second, source.inventory)
    at_once = Checkpoint.open(apply(source, both, tmp_path / "at_once", moments=moments))
    assert last.inventory == at_once.inventory == result(both, source.inventory)
    assert {k: v for k, v in last.config.items() if k != "transformers_version"} == {
        k: v for k, v in at_once.config.items() if k != "transformers_version"
    }
    for entry in last.inventory.tensors():
        assert torch.equal(last.read(entry), at_once.read(entry)), entry.name


@pytest.mark.parametrize("form", ["base", "columns of a base", "bases"])
def test_experts_that_share_a_base_are_not_selected_afterwards(form: str, tmp_path: Path) -> None:
    source, moments = opened("olmoe")
    middle = Checkpoint.open(apply(source, everywhere(source.inventory, FORMS[form]), tmp_path / "m", moments=moments))
    with pytest.raises(PlanError, match=r"share a base.*select experts first"):
        everywhere(middle.inventory, LayerPlan(experts=CHOICE))
    dropped = Plan.of(middle.inventory, [LayerPlan(drop="block"), LayerPlan(drop="moe"), LayerPlan(top_k=1)])
    out = load_model(apply(middle, dropped, tmp_path / "out"))
    ours = load_model(middle.path).model.layers[2].mlp.experts.state_dict()
    found = out.model.layers[1].mlp.experts.state_dict()
    assert found.keys() == ours.keys() and all(torch.equal(found[name], ours[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("form", OWN)
def test_a_model_has_the_type_that_is_asked_for_and_caches(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    source, moments = opened("mixtral")
    plan = everywhere(source.inventory, fitting(form, SELECTIONS["mapped"]))
    model = load_model(apply(source, plan, tmp_path / "out", moments=moments), dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.is_meta for parameter in model.parameters())
    with torch.no_grad():
        first = model(TOKENS[:, :8], use_cache=True)
        step = model(TOKENS[:, 8:], past_key_values=first.past_key_values).logits
        bound = 1e-5 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(step, model(TOKENS).logits[:, 8:], rtol=bound, atol=bound)


@pytest.mark.parametrize("form", [*OWN, "4 bits"])
def test_gradients_reach_what_is_stored(form: str, tmp_path: Path) -> None:
    source, moments = opened("qwen3_moe")
    plan = everywhere(source.inventory, fitting(form, SELECTIONS["mapped"]))
    model = load_model(apply(source, plan, tmp_path / "out", moments=moments))
    tokens = tiny_tokens(8, 32)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name
    for index in range(3):
        experts = model.model.layers[index].mlp.experts
        if isinstance(experts, CompressedExperts) and "rank" in plan.stages:
            assert any(part in name for name, _ in experts.named_parameters() for part in ("left", "right", "mix"))


# Damage


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configured(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


Damage = Callable[[Path], None]
STEM = "model.layers.1.mlp.experts.3.up_proj"


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def without(name: str) -> Damage:
    return lambda folder: rewritten(folder, lambda tensors: tensors.pop(name).clone())


def narrower(name: str) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][:-1].clone()

    return lambda folder: rewritten(folder, change)


def replaced(name: str, value: torch.Tensor) -> Damage:
    return lambda folder: rewritten(folder, lambda tensors: tensors.update({name: value}))


def restated(key: str, value: Any) -> Damage:
    return lambda folder: configured(folder, lambda c: c["per_layer_config"]["1"][FORM_KEY].update({key: value}))


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "truncated": ("factors", cut, "model.safetensors"),
    "missing factor": ("base", without(f"{STEM}.left"), f"lacks 1 tensors .*{STEM}.left"),
    "missing base": (
        "base",
        without("model.layers.1.mlp.experts.base.up_proj.weight"),
        "lacks 1 tensors .*base.up_proj.weight",
    ),
    "missing columns": (
        "columns of a base",
        without("model.layers.1.mlp.experts.base.up_proj.columns"),
        "lacks 1 tensors .*up_proj.columns",
    ),
    "missing mixture": ("bases", without(f"{STEM}.mix"), f"lacks 1 tensors .*{STEM}.mix"),
    "missing scale": ("4 bits", without(f"{STEM}.weight_scale"), f"lacks 1 tensors .*{STEM}.weight_scale"),
    "a factor too narrow": ("factors", narrower(f"{STEM}.right"), rf"{STEM}.right has shape \[5, 64\], .* \[6, 64\]"),
    "a channel less": ("channels", narrower(f"{STEM}.weight"), rf"{STEM}.weight has shape \[23, 64\], .* \[24, 64\]"),
    "other ranks": ("base", restated("ranks", [[5, 6, 8]] * 8), "down_proj.left has shape .* the config asks for"),
    "other widths": ("channels", restated("widths", [1] * 8), "has shape .* but the config asks for"),
    "other bases": ("bases", restated("bases", [2, 9, "silu"]), "has shape .* but the config asks for"),
    "no form": (
        "factors",
        lambda folder: configured(folder, lambda config: config.pop("per_layer_config")),
        "lacks .* tensors that its config asks for",
    ),
    "no quantisation": (
        "4 bits",
        lambda folder: configured(folder, lambda config: config.pop("quantization_config")),
        "lacks .* tensors that its config asks for",
    ),
    "a foreign tensor": ("4 bits", replaced(f"{STEM}.weight_zero_point", torch.ones(2)), "weight_zero_point"),
    "another shape inside": (
        "4 bits",
        replaced(f"{STEM}.weight_shape", torch.tensor([64, 32])),
        r"of a matrix of shape \[64, 32\] in 4 bits",
    ),
    "columns that do not exist": (
        "columns of a base",
        replaced("model.layers.1.mlp.experts.base.up_proj.columns", torch.full((26,), 64, dtype=torch.int32)),
        "base.up_proj.columns .* ascending .* 64",
    ),
    "columns twice": (
        "columns of a base",
        replaced("model.layers.1.mlp.experts.base.up_proj.columns", torch.zeros(26, dtype=torch.int32)),
        "base.up_proj.columns .* ascending",
    ),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a form to a checkpoint of OLMoE in it."""
    folder = tmp_path_factory.mktemp("intact")
    source, moments = opened("olmoe")
    return lambda form: apply(source, everywhere(source.inventory, FORMS[form]), folder / form, moments=moments)


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_one_clear_error(name: str, intact: Callable[[str], Path], tmp_path: Path) -> None:
    form, damage, message = DAMAGES[name]
    for path in intact(form).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load_model(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_every_expert_is_read_from_its_own_tensors(intact: Callable[[str], Path]) -> None:
    """Values that differ everywhere arrive in their places, whatever the order of the file."""
    checkpoint = Checkpoint.open(intact("channels and factors"))
    experts = load_model(checkpoint.path).model.layers[1].mlp.experts
    assert isinstance(experts, CompressedExperts)
    compared = 0
    for entry in checkpoint.inventory.layers[1].tensors:
        if entry.role.startswith("expert."):
            assert torch.equal(experts.stored(entry.role, entry.expert), checkpoint.read(entry))
            compared += 1
    assert compared == EXPERTS * 5, "two factors of gate and down, and a whole up"


@pytest.mark.parametrize("form", ["columns of a base", "bases", "4 bits", "channels in 4 bits"])
def test_elements_lie_at_multiples_of_their_size(form: str, tmp_path: Path) -> None:
    """Types of 2, 4 and 8 bytes stand in one file, and readers map them as they lie."""
    source, moments = opened("olmoe", dtype=torch.bfloat16)
    out = apply(source, everywhere(source.inventory, FORMS[form]), tmp_path / "out", moments=moments)
    raw = (out / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = {name: entry for name, entry in json.loads(raw[8:start]).items() if name != "__metadata__"}
    assert len({entry["dtype"] for entry in header.values()}) > 1
    for name, entry in header.items():
        assert (start + entry["data_offsets"][0]) % BYTES_PER_ELEMENT[entry["dtype"]] == 0, name
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert ends[0][0] == 0 and ends[-1][1] == len(raw) - start, "no gap before or behind"
    assert all(one[1] == other[0] for one, other in pairwise(ends)), "none between"


@pytest.mark.parametrize("form", OWN)
def test_several_files_hold_what_one_holds(form: str, tmp_path: Path) -> None:
    source, moments = opened("olmoe")
    plan = everywhere(source.inventory, FORMS[form])
    one = Checkpoint.open(apply(source, plan, tmp_path / "one", moments=moments))
    many = Checkpoint.open(apply(source, plan, tmp_path / "many", moments=moments, shard_bytes=30_000))
    assert len(list(many.path.glob("*.safetensors"))) > 5
    assert one.inventory == many.inventory
    assert all(torch.equal(one.read(entry), many.read(entry)) for entry in one.inventory.tensors())
    load_model(many.path)
