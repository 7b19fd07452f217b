"""Planted dead experts and planted copies, on every registered method, measured on real (tiny) checkpoints.

A selection method drops a dead expert first. A grouping method puts copies into one group, and where all router rows stay
(``map``) merging them changes nothing. A method that shrinks experts takes most from a dead one. No method fails on any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.probing.model_probe import ModelProbe
from bench.text.corpus import Corpus
from methods import registry
from methods.framework.errors import RefusedError
from methods.framework.layer_plan import INSIDE, LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats
from methods.ream import REAM
from tests.support.planted_models import COPY, DEAD, EXPERTS, ORIGINAL, TOKENS, Plant, plant

pytestmark = pytest.mark.thorough

FAMILIES = ("mixtral", "qwen2_moe", "deepseek_v3")
"""Softmax that renormalises; softmax that does not, with a gated shared expert; sigmoid with correction bias, one group."""

KEEP_ALL_BUT_ONE = (EXPERTS - 1) / EXPERTS
LOGITS = TOKENS[:2, :16]
TOLERANCE = 2e-5
WIDTH = 32


@dataclass(frozen=True)
class Promise:
    """What a method promises.

    Args:
        drops: plants whose dead expert goes first.
        groups: plants whose copies form one group.
        shrinks: plants whose dead expert keeps the fewest channels, or the lowest ranks.
        knobs: settings under which it promises.
        mapped: settings under which all router rows stay, so that merging copies changes no logit; None if there are none.
        blind: why it can see none of them.
    """

    drops: tuple[Plant, ...] = ()
    groups: tuple[Plant, ...] = ()
    shrinks: tuple[Plant, ...] = ()
    knobs: dict[str, Any] = field(default_factory=dict)
    mapped: dict[str, Any] | None = None
    blind: str = ""


ALIKE: tuple[Plant, ...] = ("twins", "shadow")
PROMISES = {
    "random": Promise(blind="draws by index"),
    "layer_drop": Promise(blind="removes whole sub-layers"),
    "block_drop": Promise(blind="removes whole layers"),
    "weight_norm": Promise(drops=("null",)),  # an idle expert has ordinary weights
    "frequency": Promise(drops=("idle",)),  # tokens are routed to an expert that answers nothing
    "soft_count": Promise(drops=("idle",)),
    "expert_drop": Promise(drops=("idle",)),
    "criterion": Promise(drops=("idle", "null")),
    "ean": Promise(drops=("idle", "null")),
    "reap": Promise(drops=("idle", "null")),
    "man": Promise(drops=("idle", "null")),
    "msan": Promise(drops=("idle", "null")),
    "easy_ep": Promise(drops=("idle", "null")),
    "mone": Promise(drops=("idle", "null")),
    # Removal losses: without a null expert its tokens go elsewhere, which changes the output.
    "naee": Promise(drops=("idle",)),
    "naee_progressive": Promise(drops=("idle",)),
    "naee_greedy": Promise(drops=("idle",)),
    "moe_i2": Promise(drops=("idle",), knobs={"allocation": "uniform"}),
    "diep": Promise(blind="learns masks by gradient; on the mask of a dead expert the loss does not depend"),
    # Twins may both be dominant; a shadow is not, and joins the expert that its logits follow.
    "m_smoe": Promise(drops=("idle",), groups=("shadow",), mapped={}),
    # Copies are most similar, but the most salient centroid takes whoever is free first, however unlike.
    "ream": Promise(drops=("idle", "null")),
    # Similarity of outputs or weights; a dead expert is like no other.
    "hc_smoe": Promise(groups=ALIKE, mapped={}),
    "sub_moe": Promise(groups=ALIKE, mapped={"rank_share": 1.0}),
    "cka_merge": Promise(groups=ALIKE, mapped={"router": "map"}),
    "cka_prune": Promise(groups=ALIKE, mapped={"router": "map"}),
    "stun": Promise(groups=("twins",), mapped={"router": "map"}),  # a shadow's row is far from the original's
    "lexi": Promise(blind="keeps all experts, and routes tokens to fewer"),
    # Zeros inside every expert.
    "magnitude": Promise(blind="keeps all experts"),
    "wanda": Promise(blind="keeps all experts"),
    "moe_pruner": Promise(blind="keeps all experts"),
    "sparsegpt": Promise(blind="keeps all experts"),
    # Every expert in another form.
    "camera_p": Promise(shrinks=("idle", "null")),
    "heapr": Promise(shrinks=("idle", "null")),
    "svd": Promise(shrinks=("idle",)),  # by removal losses, see above
    # An idle expert has no outputs, so its weights count.
    "whitened_svd": Promise(shrinks=("null",), knobs={"ranks": "spectrum"}),
    "d2_moe": Promise(blind="gives all experts of a layer one rank"),
    "mobe": Promise(blind="gives all experts of a layer the same bases"),
    "rtn": Promise(blind="keeps all experts"),
    "gptq": Promise(blind="keeps all experts"),
    "awq": Promise(blind="keeps all experts"),
}

QUICK: dict[str, dict[str, Any]] = {"diep": {"steps": 8}}
"""Settings that make a method cheaper where only failing is of interest."""

SHORT: dict[str, dict[str, Any]] = {"mobe": {"steps": 20}}
"""Settings that make it cheaper to write what a method decides."""

Planted = Callable[[str, Plant], tuple[Checkpoint, Stats, ModelProbe]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Return a function from family and plant to the checkpoint, all its statistics and a probe."""

    @cache
    def made(family: str, kind: Plant) -> tuple[Checkpoint, Stats, ModelProbe]:
        checkpoint = Checkpoint.open(plant(family, kind, tmp_path_factory.mktemp(f"{family}-{kind}")))
        corpus = Corpus.of(TOKENS.tolist(), "random ids")
        return checkpoint, calibrate(checkpoint, corpus, set(CATALOGUE)), ModelProbe(checkpoint, corpus, tokens=64)

    return made


def decide(method: Method, made: tuple[Checkpoint, Stats, ModelProbe]) -> Plan:
    checkpoint, stats, probe = made
    return method.plan(checkpoint.inventory, stats, probe if method.probing else None)


def logits(path: Path) -> torch.Tensor:
    with torch.no_grad():
        values: torch.Tensor = load_model(path)(LOGITS).logits
    return values


def changed(made: tuple[Checkpoint, Stats, ModelProbe], plan: Plan, folder: Path) -> float:
    """Return the largest difference of a logit between the source and the checkpoint that ``plan`` makes of it."""
    checkpoint, stats, _ = made
    written = apply(checkpoint, plan, folder / "compressed", moments=stats)
    return float((logits(written) - logits(checkpoint.path)).abs().max())


def moe_layers(plan: Plan, made: tuple[Checkpoint, Stats, ModelProbe]) -> list[LayerPlan]:
    return [plan.layers[index] for index in made[0].inventory.moe_layers]


@pytest.mark.parametrize("name", registry.names())
def test_every_method_states_what_it_promises(name: str) -> None:
    assert name in PROMISES, f"say in PROMISES what {name} does with dead experts and with copies"
    promise = PROMISES[name]
    kept = promise.drops or promise.groups or promise.shrinks
    assert bool(promise.blind) != bool(kept), "a promise, or the reason why there is none"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plants_are_what_they_say(family: str, planted: Planted) -> None:
    for index in planted(family, "idle")[0].inventory.moe_layers:
        idle = planted(family, "idle")[1].layer("gate_norm_moment", index)
        assert idle[DEAD, 0, 0] == 0 and (idle[:, 0, 0] > 0).sum() == EXPERTS - 1
        null = planted(family, "null")[1].layer("gate_norm_moment", index)
        assert null[DEAD, 0, 0] > 0 and null[DEAD, 0, 1] == 0 and (null[:, 0, 1] > 0).sum() == EXPERTS - 1
        shadow = planted(family, "shadow")[1].layer("gate_norm_moment", index)
        assert shadow[COPY, 0, 0] == shadow[:, 0, 0].min() < shadow[ORIGINAL, 0, 0]
        assert planted(family, "twins")[1].layer("router_row_gram", index)[ORIGINAL, COPY] > 0


DROPS = [(name, kind) for name, promise in PROMISES.items() for kind in promise.drops]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "kind"), DROPS)
def test_the_dead_expert_goes_first(family: str, name: str, kind: Plant, planted: Planted, tmp_path: Path) -> None:
    made = planted(family, kind)
    plan = decide(registry.method(name, keep=KEEP_ALL_BUT_ONE, **PROMISES[name].knobs), made)
    survivors = tuple(expert for expert in range(EXPERTS) if expert != DEAD)
    assert [layer.experts for layer in moe_layers(plan, made)] == [survivors] * len(made[0].inventory.moe_layers)
    if kind == "idle" and family != "mixtral":  # what nobody uses can go without a trace, also merged with weight 0
        assert changed(made, plan, tmp_path) <= TOLERANCE


def test_a_constant_stands_for_a_null_expert_exactly(planted: Planted, tmp_path: Path) -> None:
    made = planted("qwen2_moe", "null")
    plan = decide(registry.method("mone", keep=KEEP_ALL_BUT_ONE), made)
    assert all(layer.constants == (DEAD,) for layer in moe_layers(plan, made))
    assert changed(made, plan, tmp_path) <= TOLERANCE


GROUPS = [(name, kind) for name, promise in PROMISES.items() for kind in promise.groups]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "kind"), GROUPS)
def test_copies_form_one_group(family: str, name: str, kind: Plant, planted: Planted) -> None:
    made = planted(family, kind)
    plan = decide(registry.method(name, keep=KEEP_ALL_BUT_ONE, **PROMISES[name].knobs), made)
    for layer in moe_layers(plan, made):
        assert layer.experts is not None
        gone = set(range(EXPERTS)) - set(layer.experts)
        assert len(gone) == 1 and gone <= {ORIGINAL, COPY}, f"{gone} went instead of one of the two copies"
        assert [merge.members for merge in layer.merges] in ([], [(ORIGINAL, COPY)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["twins", "shadow"])
def test_a_copy_is_nearest_for_ream(family: str, kind: Plant, planted: Planted) -> None:
    checkpoint, stats, _ = planted(family, kind)
    for index in checkpoint.inventory.moe_layers:
        similarity = REAM().similarity(stats, index)
        assert similarity[ORIGINAL, COPY] == pytest.approx(1.0, abs=1e-3)
        np.fill_diagonal(similarity, 0.0)
        assert similarity[ORIGINAL].argmax() == COPY and similarity[COPY].argmax() == ORIGINAL


MAPPED = [(name, kind) for name, kind in GROUPS if PROMISES[name].mapped is not None]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "kind"), MAPPED)
def test_merging_copies_changes_no_logit(family: str, name: str, kind: Plant, planted: Planted, tmp_path: Path) -> None:
    made = planted(family, kind)
    mapped = PROMISES[name].mapped
    assert mapped is not None
    plan = decide(registry.method(name, keep=KEEP_ALL_BUT_ONE, **mapped), made)
    for layer in moe_layers(plan, made):
        assert layer.router == "map" and layer.expert_map is not None
        assert layer.expert_map[ORIGINAL] == layer.expert_map[COPY], "both rows lead to one stored expert"
    assert changed(made, plan, tmp_path) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["idle", "null", "twins", "shadow"])
@pytest.mark.parametrize("name", registry.names())
def test_no_method_fails(family: str, kind: Plant, name: str, planted: Planted) -> None:
    made = planted(family, kind)
    planned = 0
    for keep in (0.25, 0.5, 0.75):
        try:
            decide(registry.method(name, keep=keep, **QUICK.get(name, {})), made).validate_for(made[0].inventory)
            planned += 1
        except RefusedError as refusal:
            assert str(refusal)
    assert planned, "refused at every budget"


@pytest.mark.parametrize("kind", ["null", "twins"])
@pytest.mark.parametrize("name", ["ream", *(name for name, promise in PROMISES.items() if promise.groups)])
def test_merged_plants_are_finite(kind: Plant, name: str, planted: Planted, tmp_path: Path) -> None:
    made = planted("qwen2_moe", kind)
    plan = decide(registry.method(name, keep=0.5), made)
    written = apply(made[0], plan, tmp_path / "compressed", moments=made[1])
    assert torch.isfinite(logits(written)).all()


SHRINKS = [(name, kind) for name, promise in PROMISES.items() for kind in promise.shrinks]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "kind"), SHRINKS)
def test_the_dead_expert_shrinks_most(family: str, name: str, kind: Plant, planted: Planted, tmp_path: Path) -> None:
    made = planted(family, kind)
    plan = decide(registry.method(name, keep=KEEP_ALL_BUT_ONE, **PROMISES[name].knobs), made)
    layers = moe_layers(plan, made)
    if layers[0].channels is not None:
        widths = [[len(kept) for kept in layer.channels or ()] for layer in layers]
        assert [own[DEAD] for own in widths] == [1] * len(layers)
        # Its channels are 1/8 of all; the one that it keeps is taken from the others.
        assert sum(map(sum, widths)) - len(layers) == len(layers) * ((EXPERTS - 1) * WIDTH - 1)
    else:
        ranks = [layer.rank.ranks for layer in layers if layer.rank is not None]
        assert [own[DEAD] for own in ranks] == [(1, 1, 1)] * len(layers)
        others = [rank for own in ranks for expert in range(EXPERTS) if expert != DEAD for rank in own[expert]]
        assert all(rank == 0 or rank > 1 for rank in others), "0 is a matrix left whole"
    written = apply(made[0], plan, tmp_path / "compressed", moments=made[1])
    assert torch.isfinite(logits(written)).all()


INSIDES = [name for name in PROMISES if registry.method_class(name).stages <= INSIDE]


@pytest.mark.parametrize("kind", ["idle", "null", "twins"])
@pytest.mark.parametrize("name", INSIDES)
def test_experts_changed_inside_are_finite(kind: Plant, name: str, planted: Planted, tmp_path: Path) -> None:
    made = planted("qwen2_moe", kind)
    plan = decide(registry.method(name, keep=0.5, **SHORT.get(name, {})), made)
    path = apply(made[0], plan, tmp_path / "compressed", moments=made[1])
    assert torch.isfinite(logits(path)).all()
    if kind == "twins" and name in ("magnitude", "rtn"):  # the others see the tokens of each copy
        for layer in load_model(path).model.layers:
            assert torch.equal(layer.mlp.experts.down_proj[ORIGINAL], layer.mlp.experts.down_proj[COPY])
