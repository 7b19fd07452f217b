"""What is stored of experts in another form: names, shapes and types in every family, and what they cost, by hand.

Sizes of the tiny models: hidden 64, width 32, 8 experts, top-2. Those of the toy: hidden 4, width 3, 4 experts, top-2.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.families.family import family_of
from methods.framework.cost import Cost, cost, cost_of, ratios, zeros
from methods.framework.errors import PlanError
from methods.framework.forms import formed, part_of
from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.inventory import EXPERT_ROLES, ExpertForm, Inventory, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.transfer import InsideExpert, result, transfers
from tests.support.inside_plans import EVERYONE, FORMS, PACKABLE, SELECTIONS, WIDTHS, everywhere, fitting
from tests.support.inventories import toy_inventory
from tests.support.tiny import FAMILIES, tiny_config

LAYER = 1
"""First MoE layer of the DeepSeek models, and of the others a MoE layer as well."""


def inventory_of(family: str) -> Inventory:
    config = {**tiny_config(family).to_dict(), "dtype": "bfloat16"}
    return family_of(config).inventory(config)


def names_of(family: str) -> tuple[str, str, str, str]:
    """Return gate, up and down of expert {e}, without ``.weight``, and the path of the experts."""
    path = f"model.layers.{LAYER}.{'block_sparse_moe' if family == 'mixtral' else 'mlp'}.experts"
    own = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    gate, up, down = (f"{path}.{{e}}.{name}" for name in own)
    return gate, up, down, path


Stored = dict[str, tuple[tuple[int, ...], str, int]]
"""Shape, dtype and number of weights by name; the matrices of the layer's base or bases have ``base`` in place of a number."""


def factors(name: str, outputs: int, rank: int, inputs: int) -> Stored:
    left, right = (outputs, rank), (rank, inputs)
    return {
        f"{name}.left": (left, "BF16", outputs * rank),
        f"{name}.right": (right, "BF16", rank * inputs),
    }


def whole(name: str, outputs: int, inputs: int) -> Stored:
    return {f"{name}.weight": ((outputs, inputs), "BF16", outputs * inputs)}


def packed(name: str, outputs: int, inputs: int, words: int, groups: int) -> Stored:
    return {
        f"{name}.weight_packed": ((outputs, words), "I32", outputs * inputs),
        f"{name}.weight_scale": ((outputs, groups), "BF16", 0),
        f"{name}.weight_shape": ((2,), "I64", 0),
    }


def expected(form: str, family: str, expert: int) -> Stored:
    """Return what is stored of one expert, and of what all share, written out."""
    names = [name.format(e=expert) for name in names_of(family)[:3]]
    gate, up, down = names
    shared = {role: name.format(e="base") for role, name in zip("gud", names_of(family)[:3], strict=True)}
    mixed = {role: name.format(e="bases") for role, name in zip("gu", names_of(family)[:2], strict=True)}
    width = WIDTHS[expert]
    if form == "channels":
        return {**whole(gate, width, 64), **whole(up, width, 64), **whole(down, 64, width)}
    if form == "factors" and expert % 2:
        return {**whole(gate, 32, 64), **factors(up, 32, 6, 64), **whole(down, 64, 32)}
    if form == "channels and factors":
        return {**factors(gate, width, 1, 64), **whole(up, width, 64), **factors(down, 64, 1, width)}
    if form in ("factors", "base", "base by entry", "columns of a base"):
        own = {**factors(gate, 32, 5, 64), **factors(up, 32, 6, 64), **factors(down, 64, 7, 32)}
        if form in ("base", "base by entry"):
            own |= {**whole(shared["g"], 32, 64), **whole(shared["u"], 32, 64), **whole(shared["d"], 64, 32)}
        elif form == "columns of a base":  # 0.4 of 64 is 25.6, of 32 is 12.8
            own |= {**whole(shared["g"], 32, 26), **whole(shared["u"], 32, 26), **whole(shared["d"], 64, 13)}
            own |= {f"{shared[role]}.columns": ((26,), "I32", 0) for role in "gu"}
            own[f"{shared['d']}.columns"] = ((13,), "I32", 0)
        return own
    if form == "bases":
        own = {f"{name}.weight": ((3, 9, 64), "BF16", 3 * 9 * 64) for name in mixed.values()}
        own |= {f"{name}.left": ((32, 9), "BF16", 32 * 9) for name in (gate, up)}
        return own | {f"{name}.mix": ((3,), "F32", 3) for name in (gate, up)} | whole(down, 64, 32)
    if form == "8 bits":  # four codes to a word
        return {**packed(gate, 32, 64, 16, 4), **packed(up, 32, 64, 16, 4), **packed(down, 64, 32, 8, 2)}
    if form == "scaled inputs":
        return {**packed(gate, 32, 64, 8, 2), **packed(up, 32, 64, 8, 2), **packed(down, 64, 32, 4, 1)}
    if form == "channels in 4 bits":
        width = len(PACKABLE[expert])
        up_and_gate = {**packed(gate, width, 64, 8, 8), **packed(up, width, 64, 8, 8)}
        return up_and_gate | packed(down, 64, width, width // 8, width // 8)
    assert form in ("4 bits", "sparse in 4 bits")  # eight codes to a word
    return {**packed(gate, 32, 64, 8, 8), **packed(up, 32, 64, 8, 8), **packed(down, 64, 32, 4, 4)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_shapes_and_types_of_every_part(family: str, form: str) -> None:
    inventory = inventory_of(family)
    layer = result(everywhere(inventory, FORMS[form]), inventory).layers[LAYER]
    stored = [entry for entry in layer.tensors if entry.role.startswith("expert.")]
    found = {entry.name: (entry.shape, entry.dtype, entry.parameters) for entry in stored}
    assert len(found) == len(stored), "no name twice"
    wanted: Stored = {}
    for expert in EVERYONE:
        wanted |= expected(form, family, expert)
    assert found == wanted
    others = [entry for entry in layer.tensors if entry not in stored]
    assert others == [entry for entry in inventory.layers[LAYER].tensors if not entry.role.startswith("expert.")]
    assert all(entry.expert is None for entry in stored if ".base." in entry.name or ".bases." in entry.name)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_the_form_describes_the_targets_of_the_transfers(form: str, selection: str) -> None:
    """So that a config, which states the form, names exactly the tensors that were written."""
    inventory = inventory_of("deepseek_v3")
    plan = everywhere(inventory, fitting(form, SELECTIONS[selection]))
    after = result(plan, inventory)
    dense = result(everywhere(inventory, LayerPlan(**SELECTIONS[selection])), inventory)
    for index, (layer, whole_layer) in enumerate(zip(after.layers, dense.layers, strict=True)):
        assert formed(whole_layer.tensors, layer.form) == layer.tensors
        assert (layer.form is None) == (inventory.layers[index].mlp == "dense")
    moves = list(transfers(plan, inventory))
    assert [move.target for move in moves] == list(after.tensors())
    computed = [move for move in moves if isinstance(move.recipe, InsideExpert)]
    for move in computed:
        recipe = move.recipe
        assert isinstance(recipe, InsideExpert)
        place = move.target.expert
        kept = SELECTIONS[selection].get("experts", EVERYONE)
        assert recipe.expert == (None if place is None else kept[place])
    assert len(computed) == sum(entry.role.startswith("expert.") for entry in after.tensors())


def test_the_part_of_a_role() -> None:
    found = {
        role: part_of(TensorEntry("", role, (), "")) for role in ("expert.up", "expert.up.left", "expert.shared_up")
    }
    assert found["expert.up"] == ("expert.up", "") and found["expert.up.left"] == ("expert.up", "left")
    assert found["expert.shared_up"] == ("expert.shared_up", "")


# Cost, by hand. A toy expert has 3 x (3 x 4) weights in 16 bits; two MoE layers, of which the first is changed.

OTHER = 4 * 36
"""Weights of the experts of the layer that is not changed."""


def priced(layer: LayerPlan) -> tuple[Cost, Cost]:
    """Return the cost of the toy, and of what ``layer`` makes of it."""
    inventory = toy_inventory()
    plan = Plan.of(inventory, [LayerPlan(), layer, LayerPlan()])
    return cost_of(inventory, tokens=10), cost(plan, inventory, tokens=10)


def check(before: Cost, after: Cost, own: int, common: int, used: int, extra_bytes: int = 0) -> None:
    """Compare costs with the weights that the changed layer stores for its experts, ``own`` one by one and ``common`` once.

    ``used`` are the weights that one token multiplies in it; weights take 2 bytes each, and ``extra_bytes`` come on top.
    """
    removed = OTHER - own - common
    assert after.routed_parameters == OTHER + own + common == before.routed_parameters - removed
    assert after.parameters == before.parameters - removed
    assert after.active_parameters == before.active_parameters - OTHER // 2 + own // 2 + common
    assert after.bytes == before.bytes - 2 * removed + extra_bytes
    assert after.flops == before.flops - 2 * 10 * (2 * 36 - used)
    assert after.experts == before.experts
    assert ratios(before, after).expert == pytest.approx(removed / (2 * OTHER))


def test_cost_of_cut_channels() -> None:
    before, after = priced(LayerPlan(channels=((0,), (0, 2), (0, 1, 2), (1, 2))))
    check(before, after, own=12 * (1 + 2 + 3 + 2), common=0, used=12 * 8 // 2)
    assert (before.channels, after.channels) == (24, 12 + 8)
    assert ratios(before, after).channels == pytest.approx(4 / 24)


def test_cost_of_factors() -> None:
    # rank 1: 3 + 4 weights; rank 2: twice as many; rank 0: 12 as before.
    before, after = priced(LayerPlan(rank=LowRank(ranks=((1, 1, 1), (2, 0, 1), (1, 1, 1), (1, 1, 1)))))
    own = 3 * 21 + (14 + 12 + 7)
    check(before, after, own=own, common=0, used=own // 2)
    assert after.channels == 24, "factors keep the channels"


def test_cost_of_channels_and_factors() -> None:
    channels = ((0,), (0, 2), (0, 1, 2), (1, 2))
    before, after = priced(LayerPlan(channels=channels, rank=LowRank(ranks=((1, 0, 1),) * 4)))
    own = sum((width + 4) + 4 * width + (4 + width) for width in (1, 2, 3, 2))
    check(before, after, own=own, common=0, used=own // 2)
    assert after.channels == 12 + 8


def test_cost_of_a_base() -> None:
    shared = SharedBase(members=(0, 1), weights=(0.5, 0.5))
    before, after = priced(LayerPlan(rank=LowRank(ranks=((1, 1, 1),) * 4, base=shared)))
    # The base multiplies every token once, the factors those of the two experts that are chosen.
    check(before, after, own=4 * 21, common=36, used=2 * 21 + 36)


def test_cost_of_the_columns_of_a_base() -> None:
    shared = SharedBase(members=(0, 1), weights=(0.5, 0.5), columns=0.5)
    before, after = priced(LayerPlan(rank=LowRank(ranks=((1, 1, 1),) * 4, base=shared)))
    # 2 of 4 inputs of gate and up, 2 of 3 of down; indices of 4 bytes say which, and count as no weights.
    check(before, after, own=4 * 21, common=6 + 6 + 8, used=2 * 21 + 20, extra_bytes=4 * (2 + 2 + 2))


def test_cost_of_bases() -> None:
    before, after = priced(LayerPlan(bases=Bases(count=2, rank=1)))
    # For gate and up each 2 bases of 1 x 4; for each expert 3 x 1 and two weights over bases in 4 bytes; down as before.
    own = 4 * (2 * (3 + 2) + 12)
    # Of an expert that is chosen: the left factors, its own mixtures of 1 x 4, and down.
    check(before, after, own=own, common=2 * 8, used=2 * (2 * (3 + 4) + 12), extra_bytes=4 * 2 * 2 * 2)


def test_cost_of_sixteen_and_of_four_bits() -> None:
    inventory = inventory_of("qwen3_moe")
    plan = everywhere(inventory, FORMS["4 bits"])
    before, after = cost_of(inventory), cost(plan, inventory)
    assert (after.parameters, after.routed_parameters) == (before.parameters, before.routed_parameters)
    assert (after.active_parameters, after.flops, after.channels) == (
        before.active_parameters,
        before.flops,
        before.channels,
    )
    weights = 3 * 32 * 64
    scales, shapes = 2 * weights // 8, 3 * 16
    assert before.bytes - after.bytes == 3 * 8 * (2 * weights - (weights // 2 + scales + shapes))
    coarse = cost(everywhere(inventory, LayerPlan(bits=Quantisation(bits=8, group=32))), inventory)
    assert before.bytes - coarse.bytes == 3 * 8 * (2 * weights - (weights + 2 * weights // 32 + shapes))
    assert ratios(before, after).bytes > ratios(before, coarse).bytes > 0 == ratios(before, after).total


def test_zeros_are_counted_within_the_channels_that_stay() -> None:
    inventory = toy_inventory()
    layer = LayerPlan(channels=((0,), (0, 2), (0, 1, 2), (1, 2)), sparsity=Sparsity(share=0.5))
    plan = Plan.of(inventory, [LayerPlan(), layer, LayerPlan()])
    # Rows of gate and up have 4 inputs, of which 2 go; the 4 rows of down have as many inputs as the expert has channels.
    assert zeros(plan, inventory) == (1 + 2 + 3 + 2) * 2 * 2 + 4 * (0 + 1 + 1 + 1)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (LayerPlan(channels=((0,),) * 3), "channels are stated for 3 experts, 4 stay"),
        (LayerPlan(channels=((0, 3),) * 4), "channel 3 does not exist; experts have 3"),
        (LayerPlan(rank=LowRank(ranks=((1, 1, 1),) * 3)), "ranks are stated for 3 experts, 4 stay"),
        (LayerPlan(rank=LowRank(ranks=((1, 1, 4),) * 4)), "rank 4 of expert.down of expert 0 exceeds its size, 3"),
        (
            LayerPlan(channels=((0, 1, 2),) * 3 + ((2,),), rank=LowRank(ranks=((2, 0, 0),) * 4)),
            "rank 2 of expert.gate of expert 3 exceeds its size, 1",
        ),
        (LayerPlan(bases=Bases(count=2, rank=4)), r"bases of rank 4 exceed gate and up, which are \[3, 4\]"),
        (LayerPlan(channels=((0,),) * 4, bases=Bases(count=1, rank=1)), "need all of their channels"),
        (
            LayerPlan(
                experts=(0, 1), rank=LowRank(ranks=((1, 1, 1),) * 2, base=SharedBase(members=(2,), weights=(1.0,)))
            ),
            r"experts that do not stay: \[2\]",
        ),
        (
            LayerPlan(bits=Quantisation(bits=8, group=4)),
            "group size 4 needs inputs in multiples of 4, expert.down has 3",
        ),
        (LayerPlan(bits=Quantisation(bits=4, group=1)), "packing needs inputs in multiples of 8, expert.gate has 4"),
    ],
)
def test_what_does_not_fit_the_experts_is_refused(layer: LayerPlan, reason: str) -> None:
    inventory = toy_inventory()
    with pytest.raises(PlanError, match=f"layer 1: .*{reason}"):
        Plan.of(inventory, [LayerPlan(), layer, LayerPlan()])


def test_what_keeps_everything_is_stated_by_no_plan() -> None:
    inventory = toy_inventory()
    neutral = LayerPlan(channels=((0, 1, 2),) * 4, rank=LowRank(ranks=((0, 0, 0),) * 4))
    assert Plan.of(inventory, [LayerPlan(), neutral, LayerPlan()]) == Plan.identity(inventory)
    layer = inventory.layers[1]
    assert formed(layer.tensors, None) == layer.tensors == formed(layer.tensors, ExpertForm())
    assert {part_of(entry)[0] for entry in layer.with_role(*EXPERT_ROLES)} == set(EXPERT_ROLES)
    assert replace(layer, form=ExpertForm()) != layer
