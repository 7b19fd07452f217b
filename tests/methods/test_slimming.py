"""What the slimming methods state, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.laws import decisions
from bench.laws.cases import case
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods import registry
from methods.framework.cost import cost, zeros
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inside import SPARSITY_MOMENTS, Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.slimming import Magnitude
from tests.support.inventories import toy_inventory

NAMES = ("magnitude", "wanda", "moe_pruner", "sparsegpt")
NOTHING = Stats({})


def shares(plan: Plan) -> list[float | None]:
    return [layer.sparsity.share if layer.sparsity else None for layer in plan.layers]


@pytest.mark.parametrize("name", NAMES)
def test_every_moe_layer_gets_the_share_without_a_statistic(name: str) -> None:
    inventory = case("deepseek_v2").inventory
    method = registry.method(name, keep=0.9)
    assert isinstance(method, LayerwiseMethod) and method.needs == frozenset()
    plan = method.plan(inventory, NOTHING)
    rule = Sparsity(share=0.1, kernel=name)
    assert [layer.sparsity for layer in plan.layers] == [None, rule, rule, rule, rule], "the first layer is dense"
    assert plan.stages == {"sparsity"} == method.stages
    assert plan.moments == method.moments == SPARSITY_MOMENTS[name]
    assert cost(plan, inventory) == cost(Plan.identity(inventory), inventory), "zeros are stored"


@pytest.mark.parametrize("keep", [0.25, 0.3, 0.5, 0.7, 0.9])
def test_zeros_are_the_decimal_share_of_each_row(keep: float) -> None:
    inventory = case("mixtral").inventory  # rows of 64 and of 32 inputs, a multiple of neither 10 nor 100
    per_expert = 2 * 32 * int(64 * round(1 - keep, 9)) + 64 * int(32 * round(1 - keep, 9))
    assert zeros(registry.method("magnitude", keep=keep).plan(inventory, NOTHING), inventory) == 5 * 16 * per_expert
    exact = registry.method("magnitude", keep=keep).plan(inventory, NOTHING).layers[0].sparsity
    assert exact is not None and int(100 * exact.share) == round(100 * (1 - keep))


def test_knots_change_the_share_with_depth_and_a_dense_layer_states_nothing() -> None:
    inventory = case("mixtral").inventory
    method = registry.method("wanda", keep=(0.5, 1.0))
    assert shares(method.plan(inventory, NOTHING)) == [0.5, 0.375, 0.25, 0.125, None]
    assert method.moments


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [1.0, (1.0, 1.0)])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_keeping_everything_is_the_identity_and_needs_no_measurement(name: str, keep: object, pattern: str) -> None:
    inventory = case("olmoe").inventory
    method = registry.method(name, keep=keep, pattern=pattern)
    assert method.plan(inventory, NOTHING) == Plan.identity(inventory)
    assert method.measured == frozenset()


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_a_pattern_has_its_own_share(pattern: str) -> None:
    inventory = case("mixtral").inventory
    plan = registry.method("sparsegpt", pattern=pattern).plan(inventory, NOTHING)
    assert plan.layers[0].sparsity == Sparsity(share=0.5, pattern=pattern, kernel="sparsegpt")
    for keep in (0.25, 0.75, (0.5, 1.0)):
        with pytest.raises(RefusedError, match=rf"pattern {pattern} zeroes half of the weights, so keep is 0\.5"):
            registry.method("sparsegpt", pattern=pattern, keep=keep).plan(inventory, NOTHING)


def test_a_pattern_that_the_matrices_cannot_be_cut_into_is_refused() -> None:
    inventory = toy_inventory()
    widths = {entry.shape[1] for layer in inventory.layers for entry in layer.with_role("expert.gate", "expert.down")}
    assert any(width % 8 for width in widths)
    with pytest.raises(RefusedError, match="inputs in multiples of 8"):
        registry.method("magnitude", pattern="4:8").plan(inventory, NOTHING)
    registry.method("magnitude").plan(inventory, NOTHING)


def test_no_weight_left_is_refused_and_no_share_is_an_error() -> None:
    with pytest.raises(RefusedError, match="leaves no weight"):
        registry.method("magnitude", keep=1e-12).plan(case("mixtral").inventory, NOTHING)
    with pytest.raises(ConfigError):
        registry.method("magnitude", keep=0.0)
    with pytest.raises(ConfigError):
        registry.method("wanda", pattern="1:4")


class TooMany(Magnitude):
    """Zeroes two weights too many in a row of 64."""

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        sparsity = super().decide_layer(inventory, stats, layer).sparsity
        if sparsity is None:
            return LayerPlan()
        return LayerPlan(sparsity=sparsity.model_copy(update={"share": sparsity.share + 2 / 64}))


class Reversed(Magnitude):
    """Zeroes more where more should stay."""

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        assert isinstance(self.keep, float)
        return LayerPlan(sparsity=Sparsity(share=0.5 + 0.4 * self.keep) if self.keep < 1.0 else None)


def test_the_law_of_budgets_counts_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="should remain"):
        decisions.budget(TooMany, case("mixtral"))
    decisions.budget(Magnitude, case("mixtral"))
    monkeypatch.setattr(decisions, "_remaining", lambda plan, inventory, keep: (1.0, 1, 0))
    with pytest.raises(AssertionError, match="smaller model"):
        decisions.budget(Reversed, case("mixtral"))
    decisions.budget(Magnitude, case("mixtral"))


@pytest.mark.e2e
def test_on_a_trained_model_more_information_loses_less() -> None:
    """Loss on held-out text with 70 % of the weights gone: dense, SparseGPT, MoE-Pruner and Wanda, magnitude, in this order."""
    from bench.pocket import corpus, pocket_path

    checkpoint = Checkpoint.open(pocket_path("pocket-qwen2moe"))
    wanted = frozenset().union(*SPARSITY_MOMENTS.values())
    stats = calibrate(checkpoint, Corpus.of(corpus(tokens=12288), "pocket"), wanted)
    model, text = load_model(checkpoint.path, torch.float32), torch.tensor(corpus(tokens=4096, seed=5))

    def held_out(name: str, keep: float) -> float:
        plan = registry.method(name, keep=keep).plan(checkpoint.inventory, NOTHING)
        with realised(model, checkpoint.inventory, plan, stats), torch.no_grad():
            return float(model(input_ids=text, labels=text).loss)

    dense = held_out("magnitude", 1.0)
    losses = {name: held_out(name, 0.3) for name in NAMES}
    assert dense < losses["sparsegpt"] < min(losses["wanda"], losses["moe_pruner"])
    assert max(losses["wanda"], losses["moe_pruner"]) < losses["magnitude"]
    assert held_out("magnitude", 1.0) == dense
