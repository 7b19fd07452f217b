"""Each ordered pair of stages composes to one plan that does what the two do one after the other, or is refused with a reason."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.whole import stored_expert
from bench.families.family import family_of
from methods.framework.compose import compose
from methods.framework.errors import PlanError
from methods.framework.inside import Bases, LowRank, Quantisation, SharedBase, Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.inside_plans import everywhere
from tests.support.inside_slowly import drawn_moments
from tests.support.tiny import tiny_checkpoint, tiny_config

CHOICE = (1, 2, 5, 6)
MERGE = Merge(into=1, members=(1, 2), weights=(0.5, 0.5))
SPARSE, BITS = Sparsity(share=0.5, pattern="2:4"), Quantisation(bits=4, group=8)
AWQ = Quantisation(bits=8, group=8, kernel="awq")
SHARED = SharedBase(members=(0, 3), weights=(0.75, 0.25))


def channels(experts: int) -> tuple[tuple[int, ...], ...]:
    """Return different channels for each expert: 8, 16, 24 or all of them."""
    return (*(tuple(range(e % 2, e % 2 + 8 * (1 + e % 3))) for e in range(experts - 1)), tuple(range(32)))


def ranks(experts: int) -> tuple[tuple[int, int, int], ...]:
    return tuple((1 + e, 2 + e, 0) for e in range(experts))


def stage(name: str, experts: int) -> LayerPlan:
    """Return what the stage states for a layer of 4 to 8 experts."""
    some = tuple(range(0, experts, 2))
    stages: dict[str, dict[str, Any]] = {
        "block": {"drop": "block"},
        "sublayer": {"drop": "moe"},
        "select": {"experts": CHOICE if experts == 8 else some},
        "merge": {"experts": (0, 1, *range(3, experts)), "merges": (MERGE,), "router": "mean"},
        "map": {"experts": (0, 1, *range(3, experts)), "merges": (MERGE,), "router": "map"},
        "top_k": {"top_k": 1},
        "channels": {"channels": channels(experts)},
        "rank": {"rank": LowRank(ranks=ranks(experts))},
        "base": {"rank": LowRank(ranks=((3, 4, 5),) * experts, base=SHARED)},
        "bases": {"bases": Bases(count=2, rank=3)},
        "sparsity": {"sparsity": SPARSE},
        "bits": {"bits": BITS},
        "awq": {"bits": AWQ},
    }
    return LayerPlan(**stages[name])


EXPERTS = ("select", "merge", "map")
FACTORED, FEW_BITS = ("rank", "base", "bases"), ("bits", "awq")
INSIDE = ("channels", *FACTORED, "sparsity", *FEW_BITS)
STAGES = ("block", "sublayer", *EXPERTS, "top_k", *INSIDE)


def refusal(first: str, second: str) -> str | None:
    """Return why ``second`` cannot follow ``first``; None where it can."""
    if first == "sublayer":
        return None if second == "block" else "no experts to change"
    if first == "block" or second in ("block", "sublayer", "top_k"):
        return None
    if second in ("merge", "map") and first in INSIDE:
        return "of which no average|merge first"
    if second in EXPERTS and first in ("merge", "map"):
        again = "one router row each" if second == "map" else None
        return "lead to one expert already" if first == "map" else again
    if second == "select":
        return "share a base|select experts first" if first in ("base", "bases") else None
    if first not in INSIDE or second not in INSIDE:
        return None
    if first in (*FACTORED, *FEW_BITS):
        return "stored with .* already"
    if first == "channels":
        reasons = {"channels": "stored with fewer channels already"} | dict.fromkeys(FACTORED, "different widths")
        return reasons.get(second)
    return None if second in FEW_BITS else "left the experts sparse, so they cannot be"


def inventory_of(family: str = "qwen3_moe") -> Inventory:
    config = tiny_config(family).to_dict()
    return family_of(config).inventory(config)


@pytest.mark.parametrize(("first", "second"), list(itertools.product(STAGES, STAGES)))
def test_a_pair_composes_or_is_refused_with_a_reason(first: str, second: str) -> None:
    source = inventory_of()
    # The second layer of three; a block that is dropped leaves the third in its place.
    one = Plan.of(source, [LayerPlan(), stage(first, 8), LayerPlan()])
    middle = result(one, source)
    layers = [LayerPlan()] * len(middle.layers)
    layers[1] = stage(second, middle.layers[1].experts or 8)
    reason = refusal(first, second)
    if reason is not None:
        with pytest.raises(PlanError, match=reason) as caught:
            compose(one, Plan.of(middle, layers), source)
        assert len(str(caught.value)) > 40
        return
    two = Plan.of(middle, layers)
    both = compose(one, two, source)
    assert result(both, source) == result(two, middle)
    assert both.normalised(source) == both
    assert compose(one, Plan.identity(middle), source) == one
    assert compose(Plan.identity(source), one, source) == one


def test_how_many_pairs_compose() -> None:
    refused = [(a, b) for a, b in itertools.product(STAGES, STAGES) if refusal(a, b) is not None]
    assert len(STAGES) ** 2 - len(refused) == 93


def composed(first: LayerPlan, second: LayerPlan) -> LayerPlan:
    source = inventory_of()
    one = everywhere(source, first)
    middle = result(one, source)
    both = compose(one, everywhere(middle, second), source)
    assert len(set(both.layers)) == 1
    return both.layers[0]


def test_selecting_keeps_what_is_stated_of_the_experts_that_stay() -> None:
    chosen = LayerPlan(experts=CHOICE)
    cut, factored = channels(8), ranks(8)
    one = composed(LayerPlan(channels=cut, sparsity=SPARSE, bits=BITS), chosen)
    assert one == LayerPlan(experts=CHOICE, channels=tuple(cut[e] for e in CHOICE), sparsity=SPARSE, bits=BITS)
    other = composed(LayerPlan(rank=LowRank(kernel="whitened", ranks=factored)), chosen)
    assert other == LayerPlan(experts=CHOICE, rank=LowRank(kernel="whitened", ranks=tuple(factored[e] for e in CHOICE)))
    scaled = composed(LayerPlan(bits=AWQ), chosen).bits
    assert scaled is not None and scaled.members == tuple(range(8)), "all of them chose the scale of their inputs"
    again = composed(LayerPlan(experts=(0, 1, 2, 5, 6, 7), channels=cut[:6]), LayerPlan(experts=(1, 3)))
    assert again == LayerPlan(experts=(1, 5), channels=(cut[1], cut[3]))


def test_what_follows_a_selection_counts_its_experts() -> None:
    base = SharedBase(members=(0, 3), weights=(0.75, 0.25))
    rule = LowRank(ranks=((3, 3, 3),) * 4, base=base)
    moved = rule.model_copy(update={"base": base.model_copy(update={"members": (1, 6)})})
    assert composed(LayerPlan(experts=CHOICE), LayerPlan(rank=rule)) == LayerPlan(experts=CHOICE, rank=moved)
    cut = channels(4)
    both = LayerPlan(channels=cut, sparsity=SPARSE)
    assert composed(LayerPlan(experts=CHOICE), both) == LayerPlan(experts=CHOICE, channels=cut, sparsity=SPARSE)
    merged = LayerPlan(experts=(0, 1, 3, 4, 5, 6, 7), merges=(MERGE,), router="mean")
    base = base.model_copy(update={"members": (1, 2)})
    rule = LowRank(ranks=((3, 3, 3),) * 7, base=base)
    moved = rule.model_copy(update={"base": base.model_copy(update={"members": (1, 3)})})
    assert composed(merged, LayerPlan(rank=rule)) == merged.model_copy(update={"rank": moved})


@pytest.mark.parametrize("seed", range(5))
def test_three_stages_in_their_order_are_one_plan_however_they_are_grouped(seed: int) -> None:
    source = inventory_of()
    triples = [
        ("select", "channels", "sparsity"),
        ("merge", "sparsity", "bits"),
        ("channels", "sparsity", "bits"),
        ("select", "awq", "select"),
        ("merge", "awq", "top_k"),
    ]
    names = triples[seed]
    plans, here = [], [source]
    for name in names:
        plans.append(everywhere(here[-1], stage(name, here[-1].layers[0].experts)))
        here.append(result(plans[-1], here[-1]))
    left = compose(compose(plans[0], plans[1], source), plans[2], source)
    right = compose(plans[0], compose(plans[1], plans[2], here[1]), source)
    assert left == right and result(left, source) == here[-1]
    assert len(left.stages) == len({"experts" if name in ("select", "merge", "top_k") else name for name in names})


ORDERED = [
    ("select", "rank"),
    ("select", "base"),
    ("select", "sparsity"),
    ("merge", "rank"),
    ("merge", "channels"),
    ("merge", "bits"),
    ("map", "rank"),
    ("channels", "select"),
    ("channels", "sparsity"),
    ("channels", "bits"),
    ("rank", "select"),
    ("sparsity", "select"),
    ("sparsity", "bits"),
    ("bits", "select"),
    ("awq", "select"),
]


@pytest.mark.parametrize(("first", "second"), ORDERED)
def test_one_plan_writes_what_two_write(first: str, second: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint("qwen3_moe", tmp_path / "source", dtype=torch.float64, num_hidden_layers=1)
    source = Checkpoint.open(folder)
    one, moments = everywhere(source.inventory, stage(first, 8)), drawn_moments(source.inventory)
    middle = Checkpoint.open(apply(source, one, tmp_path / "middle", moments=moments))
    two = everywhere(middle.inventory, stage(second, middle.inventory.layers[0].experts))
    last = Checkpoint.open(apply(middle, two, tmp_path / "last"))
    both = compose(one, two, source.inventory)
    at_once = Checkpoint.open(apply(source, both, tmp_path / "at_once", moments=moments))
    assert last.inventory == at_once.inventory
    for entry in last.inventory.tensors():
        if not entry.role.startswith("expert."):
            torch.testing.assert_close(last.read(entry), at_once.read(entry), rtol=0, atol=0)
    for place in range(last.inventory.layers[0].experts):
        for ours, theirs in zip(stored_expert(last, 0, place), stored_expert(at_once, 0, place), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
