"""What the quantising methods state, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.laws.cases import case
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inside import QUANTISATION_MOMENTS, Quantisation
from methods.framework.inventory import Inventory, LayerInventory, TensorEntry
from methods.framework.knob_space import space_of
from methods.framework.method import LayerwiseMethod
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.quantisation import AWQ, GPTQ, RTN, Quantising
from tests.support.inventories import toy_inventory

CLASSES: tuple[type[Quantising], ...] = (RTN, GPTQ, AWQ)
NOTHING = Stats({})


def bits(plan: Plan) -> list[tuple[int, int] | None]:
    return [(layer.bits.bits, layer.bits.group) if layer.bits else None for layer in plan.layers]


def widened(inventory: Inventory, inputs: int, hidden: int) -> Inventory:
    """Return ``inventory`` with routed experts whose down has ``inputs`` inputs, and gate and up ``hidden``."""

    def entry(e: TensorEntry) -> TensorEntry:
        if e.role in ("expert.gate", "expert.up"):
            return replace(e, shape=(inputs, hidden))
        return replace(e, shape=(hidden, inputs)) if e.role == "expert.down" else e

    def layer(one: LayerInventory) -> LayerInventory:
        return replace(one, tensors=tuple(entry(e) for e in one.tensors))

    return inventory.with_layers(tuple(layer(one) for one in inventory.layers))


@pytest.mark.parametrize("cls", CLASSES)
def test_every_moe_layer_gets_its_bits_without_a_statistic(cls: type[Quantising]) -> None:
    inventory = case("deepseek_v2").inventory
    method = cls()
    assert isinstance(method, LayerwiseMethod) and method.needs == frozenset() and method.keep == 0.25
    plan = method.plan(inventory, NOTHING)
    rule = Quantisation(bits=4, group=32, kernel=cls.kernel)  # hidden size 64, expert width 32
    assert [layer.bits for layer in plan.layers] == [None, rule, rule, rule, rule], "the first layer is dense"
    assert plan.stages == {"bits"} == method.stages
    assert plan.moments == method.moments == QUANTISATION_MOMENTS[cls.name]
    assert bits(cls(keep=0.5).plan(inventory, NOTHING)) == [None, *[(8, 32)] * 4]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("keep", [1.0, (1.0, 1.0)])
@pytest.mark.parametrize("group", [None, 128])
def test_keeping_everything_is_the_identity_and_needs_no_measurement(
    cls: type[Quantising], keep: float | tuple[float, ...], group: int | None
) -> None:
    inventory = case("olmoe").inventory  # whose inputs no group of 128 divides
    method = cls.configured({"keep": keep, "group": group})
    assert method.plan(inventory, NOTHING) == Plan.identity(inventory)
    assert method.measured == frozenset()
    assert cls.neutral().plan(inventory, NOTHING) == Plan.identity(inventory)


def test_knots_may_change_bits_with_depth_where_each_layer_has_one_of_them() -> None:
    inventory = case("mixtral").inventory  # five layers, all with experts
    plan = GPTQ(keep=(1.0, 0.5, 0.25, 0.5, 1.0)).plan(inventory, NOTHING)
    assert bits(plan) == [None, (8, 32), (4, 32), (8, 32), None]
    assert GPTQ(keep=(1.0, 0.5)).moments == QUANTISATION_MOMENTS["gptq"]
    message = (
        r"keep=\(0\.25, 0\.5\) leaves 5 of 16 bits in layer 1; a layer keeps 0\.25 \(4 bits\), 0\.5 \(8 bits\) or 1"
    )
    with pytest.raises(RefusedError, match=message):
        GPTQ(keep=(0.25, 0.5)).plan(inventory, NOTHING)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.75, 0.9999])
def test_other_shares_are_refused(keep: float) -> None:
    with pytest.raises(RefusedError, match=r"of 16 bits in layer 0; a layer keeps 0\.25"):
        RTN(keep=keep).plan(case("mixtral").inventory, NOTHING)
    assert keep not in RTN.shares and RTN.shares == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("inputs", "hidden", "group"),
    [(1408, 2048, 128), (14336, 4096, 128), (1344, 2048, 64), (96, 2048, 32), (1000, 2048, 8)],
)
def test_the_default_group_is_the_largest_that_serves(inputs: int, hidden: int, group: int) -> None:
    inventory = widened(toy_inventory(), inputs, hidden)
    assert bits(RTN().plan(inventory, NOTHING)) == [None, (4, group), (4, group)]


def test_a_group_that_does_not_divide_is_refused_with_the_matrix_and_what_would_serve() -> None:
    inventory = widened(toy_inventory(), 96, 256)
    assert bits(RTN(group=32).plan(inventory, NOTHING)) == [None, (4, 32), (4, 32)]
    message = (
        r"rtn: group=64 does not divide the 96 inputs of layers\.1\.expert\.0\.down; the largest power of two that divides "
        r"those of all matrices of the layer is 32, which group=None takes"
    )
    with pytest.raises(RefusedError, match=message):
        RTN(group=64).plan(inventory, NOTHING)
    with pytest.raises(RefusedError, match=r"groups have at least 8 inputs, which do not divide the 100 of .*down"):
        RTN().plan(widened(toy_inventory(), 100, 256), NOTHING)
    with pytest.raises(RefusedError, match=r"divides those of all matrices of the layer is 4$"):
        RTN(group=64).plan(widened(toy_inventory(), 100, 256), NOTHING)


def test_a_layer_that_stays_as_it_is_needs_no_group() -> None:
    inventory = widened(toy_inventory(), 96, 256)
    second = inventory.layers[2]
    odd = replace(
        second, tensors=tuple(replace(e, shape=(256, 97)) if e.role == "expert.down" else e for e in second.tensors)
    )
    inventory = inventory.with_layers((*inventory.layers[:2], odd))
    assert bits(RTN(keep=(0.25, 1.0)).plan(inventory, NOTHING)) == [None, (4, 32), None]
    with pytest.raises(RefusedError, match=r"do not divide the 97 of layers\.2"):
        RTN().plan(inventory, NOTHING)


def test_knobs_are_checked_and_can_be_searched() -> None:
    with pytest.raises(ConfigError):
        AWQ.configured({"group": 16})
    with pytest.raises(ConfigError):
        AWQ.configured({"keep": 0.0})
    with pytest.raises(ConfigError, match="kernel"):
        AWQ.configured({"kernel": "rtn"})
    assert space_of(AWQ)["group"].values == (32, 64, 128, None)  # type: ignore[union-attr]  # a Choice


def test_a_model_without_experts_is_refused() -> None:
    dense = toy_inventory(moe_layers=0)
    with pytest.raises(RefusedError, match="no MoE layer"):
        RTN().plan(dense, NOTHING)
