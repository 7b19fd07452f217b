"""Plans realised in memory compute what the compressed model computes, and leave no trace."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from bench.applying.in_memory import realised
from methods.framework.errors import PlanError
from methods.framework.inside import Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokens

KEEP_A = (0, 2, 5, 6)
KEEP_B = (1, 2, 3, 4, 6, 7)
PLANS = {
    "uniform": (LayerPlan(experts=KEEP_A), LayerPlan(experts=(1, 3, 4, 7)), LayerPlan(experts=(0, 1, 6, 7))),
    "non-uniform": (LayerPlan(experts=KEEP_B), LayerPlan(experts=KEEP_A), LayerPlan()),
    "top-k": (LayerPlan(top_k=1), LayerPlan(experts=KEEP_A, top_k=1), LayerPlan(top_k=3)),
    "moe drop": (LayerPlan(), LayerPlan(drop="moe"), LayerPlan()),
    "first block": (LayerPlan(drop="block"), LayerPlan(), LayerPlan()),
    "block drop": (LayerPlan(), LayerPlan(drop="block"), LayerPlan()),
    "combined": (LayerPlan(drop="block"), LayerPlan(experts=KEEP_B, top_k=1), LayerPlan(drop="moe")),
}


def fitting(inventory: Inventory, name: str) -> Plan:
    """Return the plan ``name`` with expert statements left out of layers that have no experts."""
    layers = [
        plan if layer.mlp == "moe" or plan.drop == "block" else LayerPlan()
        for plan, layer in zip(PLANS[name], inventory.layers, strict=True)
    ]
    return Plan.of(inventory, layers)


@pytest.fixture(scope="module")
def inventories() -> dict[str, Inventory]:
    """Inventories of the tiny checkpoints, as the reader of checkpoints sees them."""
    from bench.checkpoint.checkpoint import Checkpoint

    return {family: Checkpoint.open(tiny_checkpoint(family)).inventory for family in FAMILIES}


@pytest.fixture(scope="module")
def models() -> dict[str, PreTrainedModel]:
    return {family: tiny_model(family) for family in FAMILIES}


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(tiny_tokens()).logits


def carved(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Return a copy whose tensors are physically cut, module by module: the slow reference."""
    model = copy.deepcopy(model)
    stack = model.base_model
    stays = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"]
    for index in stays:
        layer, mlp = plan.layers[index], stack.layers[index].mlp
        if layer.drop == "moe":
            mlp.forward = lambda hidden: 0.0 * hidden
        if layer.experts is not None:
            rows = list(layer.experts)
            for module in (mlp.gate, mlp.experts):
                module.num_experts = len(rows)
                for name, parameter in list(module.named_parameters()):
                    setattr(module, name, torch.nn.Parameter(parameter[rows].detach().clone()))
            if hasattr(mlp.gate, "e_score_correction_bias"):
                mlp.gate.e_score_correction_bias = mlp.gate.e_score_correction_bias[rows].clone()
        if layer.top_k is not None:
            mlp.gate.top_k = layer.top_k
    stack.layers = torch.nn.ModuleList([stack.layers[index] for index in stays])
    for number, block in enumerate(stack.layers):
        block.self_attn.layer_idx = number
    return model


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_a_carved_model_and_then_the_original(
    family: str, name: str, models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]
) -> None:
    model, inventory = models[family], inventories[family]
    plan = fitting(inventory, name)
    before = logits(model)
    with realised(model, inventory, plan):
        inside = logits(model)
    assert torch.equal(logits(model), before)
    expected = logits(carved(model, plan))
    assert (inside - expected).abs().max() < 1e-5
    assert (inside - before).abs().max() > 1e-4, "the plan changes nothing: the comparison would be empty"


@pytest.mark.parametrize("name", ["uniform", "non-uniform", "moe drop", "block drop", "combined"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_written_checkpoint(
    family: str, name: str, inventories: dict[str, Inventory], tmp_path: Path
) -> None:
    from bench.applying.apply import apply
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.models.load import load_model

    source = Checkpoint.open(tiny_checkpoint(family))
    model = load_model(source.path, torch.float32)
    plan = fitting(source.inventory, name)
    written = load_model(apply(source, plan, tmp_path / "written"), torch.float32)
    with realised(model, source.inventory, plan):
        assert (logits(model) - logits(written)).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["first block", "combined"])
@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_cache_equals_generation_without(
    family: str, name: str, models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]
) -> None:
    model, inventory = models[family], inventories[family]
    prompt = tiny_tokens(2, 6)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    plan = fitting(inventory, name)
    with realised(model, inventory, plan):
        cached = model.generate(prompt, use_cache=True, **options)
        plain = model.generate(prompt, use_cache=False, **options)
        cache = model(prompt, past_key_values=DynamicCache(config=model.config)).past_key_values
        assert cache.get_seq_length() == 6 and len(cache.layers) == len(model.base_model.layers)
    assert torch.equal(cached, plain)
    assert torch.equal(cached, carved(model, plan).generate(prompt, use_cache=False, **options))


def snapshot(model: PreTrainedModel) -> dict[str, object]:
    state: dict[str, object] = {name: (t.data_ptr(), t._version) for name, t in model.state_dict().items()}
    state["config"] = copy.deepcopy(vars(model.config))
    state["modules"] = {name: (id(module), sorted(vars(module))) for name, module in model.named_modules()}
    state["numbers"] = [block.self_attn.layer_idx for block in model.base_model.layers]
    state["own"] = sorted(vars(model))
    return state


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_after_an_exception(
    family: str, models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]
) -> None:
    model, inventory = models[family], inventories[family]
    before = snapshot(model)
    with pytest.raises(ZeroDivisionError), realised(model, inventory, fitting(inventory, "combined")):
        pointers = {name: t.data_ptr() for name, t in model.state_dict().items() if "layers" not in name}
        assert all(before[name][0] == pointer for name, pointer in pointers.items())  # type: ignore[index]  # tuples
        raise ZeroDivisionError
    assert snapshot(model) == before


def test_identity_changes_nothing(models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]) -> None:
    model, inventory = models["mixtral"], inventories["mixtral"]
    before = logits(model)
    with realised(model, inventory, Plan.identity(inventory)):
        assert torch.equal(logits(model), before)


def test_router_logits_stay_in_source_numbering(
    models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]
) -> None:
    model, inventory = models["olmoe"], inventories["olmoe"]
    with realised(model, inventory, fitting(inventory, "non-uniform")), torch.no_grad():
        recorded = model(tiny_tokens(), output_router_logits=True).router_logits
    assert [layer.shape[-1] for layer in recorded] == [8, 8, 8]
    assert torch.isinf(recorded[1][0]).nonzero().flatten().tolist() == [1, 3, 4, 7]


def test_plans_do_not_nest(models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]) -> None:
    model, inventory = models["olmoe"], inventories["olmoe"]
    with (
        realised(model, inventory, fitting(inventory, "uniform")),
        pytest.raises(PlanError, match="do not nest"),
        realised(model, inventory, fitting(inventory, "moe drop")),
    ):
        pass
    with realised(model, inventory, fitting(inventory, "moe drop")):
        pass


def test_another_model_is_refused(models: dict[str, PreTrainedModel], inventories: dict[str, Inventory]) -> None:
    with (
        pytest.raises(PlanError, match="family"),
        realised(models["olmoe"], inventories["olmoe"], Plan.identity(inventories["mixtral"])),
    ):
        pass


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (LayerPlan(experts=KEEP_A), "a router `gate` with `top_k` and a weight of 8 rows"),
        (LayerPlan(sparsity=Sparsity(share=0.5)), "expected `gate_up_proj` and `down_proj` of 8 experts"),
    ],
)
def test_a_model_that_is_built_otherwise_is_refused_and_left_alone(
    plan: LayerPlan, words: str, inventories: dict[str, Inventory]
) -> None:
    model, inventory = tiny_model("olmoe", num_experts=6), inventories["olmoe"]
    before = snapshot(model)
    with (
        pytest.raises(PlanError, match=f"{words}.*moebench apply"),
        realised(model, inventory, Plan.of(inventory, [plan] * 3)),
    ):
        pass
    assert snapshot(model) == before
