"""What a config states about the form of experts: it is read back as it was written, and what is damaged is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.families.family import Family, family_of
from bench.families.form_config import FORM_KEY, form_document, read_form
from methods.framework.errors import CheckpointError
from methods.framework.inventory import ExpertForm, Inventory, Packing
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.inside_plans import FORMS, SELECTIONS, everywhere, fitting
from tests.support.tiny import FAMILIES, tiny_config

STATED: dict[str, ExpertForm] = {
    "widths": ExpertForm(widths=(3, 1, 2)),
    "ranks": ExpertForm(ranks=((0, 1, 2), (3, 0, 0), (4, 5, 6))),
    "both": ExpertForm(widths=(3, 1, 2), ranks=((0, 1, 2), (3, 0, 0), (4, 5, 6))),
    "base": ExpertForm(ranks=((1, 1, 1),) * 3, base=(7, 7, 4)),
    "bases": ExpertForm(bases=(2, 5, "tanh")),
    "bits": ExpertForm(bits=Packing(4, 32)),
    "widths and bits": ExpertForm(widths=(8, 16, 8), bits=Packing(8, 8)),
}


@pytest.mark.parametrize("name", STATED)
def test_what_is_stated_is_read(name: str) -> None:
    form = STATED[name]
    document = json.loads(json.dumps(form_document(form)))
    assert read_form(document, form.bits, 3, 0) == form
    assert "bits" not in document, "those stand in quantization_config"
    assert bool(document) == (form != ExpertForm(bits=form.bits))


def test_whole_experts_state_nothing() -> None:
    assert form_document(None) == {} == form_document(ExpertForm())
    for nothing in (None, {}):
        assert read_form(nothing, None, 3, 0) is None
        assert read_form(nothing, Packing(4, 16), 3, 0) == ExpertForm(bits=Packing(4, 16))


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ([1], "it holds list"),
        ("svd", "it holds str"),
        ({"width": [1, 1, 1], "zeros": 1, "ranks": None}, "it holds width, zeros"),
        ({"bits": [4, 16]}, "it holds bits"),
        ({"widths": [1, 1]}, "widths must be 3 positive integers, one for each expert"),
        ({"widths": [1, 1, 0]}, "widths must be 3 positive"),
        ({"widths": [1, 1, 1.5]}, "widths must be 3 positive"),
        ({"widths": [1, 1, True]}, "widths must be 3 positive"),
        ({"widths": 3}, "widths must be 3 positive"),
        ({"ranks": [[1, 1, 1]] * 2}, "ranks must be 3 rows of three integers from 0 on"),
        ({"ranks": [[1, 1, 1], [1, 1, 1], [1, 1]]}, "ranks must be 3 rows"),
        ({"ranks": [[1, 1, 1], [1, 1, 1], [1, 1, -1]]}, "ranks must be 3 rows"),
        ({"ranks": [[1, 1, 1], [1, 1, 1], "111"]}, "ranks must be 3 rows"),
        ({"ranks": {"0": [1, 1, 1]}}, "ranks must be 3 rows"),
        ({"ranks": [[1, 1, 1]] * 3, "base": [4, 4]}, "base must be three positive integers"),
        ({"ranks": [[1, 1, 1]] * 3, "base": [4, 4, 0]}, "base must be three positive integers"),
        ({"bases": [2, 5]}, "bases must be two positive integers and an activation, silu or tanh"),
        ({"bases": [2, 0, "silu"]}, "bases must be two positive integers"),
        ({"bases": [2, 5, "relu"]}, "bases must be two positive integers"),
        ({"bases": "2,5"}, "bases must be two positive integers"),
    ],
)
def test_what_is_damaged_is_named(document: Any, found: str) -> None:
    with pytest.raises(CheckpointError, match=f"{FORM_KEY} of layer 7 in config.json is damaged: {found}") as caught:
        read_form(document, None, 3, 7)
    assert "fetch or write the checkpoint again" in str(caught.value)


@pytest.mark.parametrize(
    ("document", "bits", "found"),
    [
        ({"base": [4, 4, 4]}, None, "beside a base it needs a rank of at least 1"),
        ({"ranks": [[1, 0, 1]] * 3, "base": [4, 4, 4]}, None, "beside a base it needs a rank of at least 1"),
        ({"ranks": [[1, 1, 1]] * 3, "bases": [1, 1, "silu"]}, None, "ranks and bases exclude each other"),
        ({"ranks": [[1, 1, 1]] * 3}, (4, 16), "not stored in few bits"),
        ({"bases": [1, 1, "silu"]}, (4, 16), "not stored in few bits"),
        ({"widths": [1, 1, 1], "bases": [1, 1, "silu"]}, None, "so there are no widths"),
        ({"widths": [1, 1, 1], "ranks": [[1, 1, 1]] * 3, "base": [4, 4, 4]}, None, "so there are no widths"),
    ],
)
def test_what_no_plan_makes_is_no_form(document: Any, bits: tuple[int, int] | None, found: str) -> None:
    """Each part alone is sound, but together nothing here would read them as anyone may have meant them."""
    with pytest.raises(CheckpointError, match=f"layer 7 .* is damaged: .*{found}"):
        read_form(document, bits, 3, 7)


def config_of(family: str) -> dict[str, Any]:
    return {**tiny_config(family).to_dict(), "dtype": "bfloat16"}


def stated(config: dict[str, Any], plan: Plan) -> tuple[Family, dict[str, Any], Inventory]:
    """Return the family, the config of what ``plan`` makes, and its inventory."""
    family = family_of(config)
    after = result(plan, family.inventory(config))
    return family, json.loads(json.dumps(family.config_for(config, plan, after))), after


@pytest.mark.parametrize("selection", ["all", "mapped"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_names_exactly_what_is_written(family: str, form: str, selection: str) -> None:
    config = config_of(family)
    plan = everywhere(family_of(config).inventory(config), fitting(form, SELECTIONS[selection]))
    own, written, after = stated(config, plan)
    assert own.inventory(written) == after
    bits = any(layer.bits for layer in plan.layers)
    assert ("quantization_config" in written) == bits
    stock = bits and selection == "all" and plan.layers[-1].channels is None
    assert ("per_layer_config" not in written) == stock == (written["architectures"] == [own.architecture])
    if stock:
        assert not {FORM_KEY, "expert_map", "constant_experts"} & set(written), "nothing that only we know"
    again = own.config_for(written, Plan.identity(after), after)
    assert json.loads(json.dumps(again)) == written, "a config of a compressed checkpoint is written again as it is"


@pytest.mark.parametrize("form", FORMS)
def test_layers_keep_their_forms_when_others_go(form: str) -> None:
    config = config_of("qwen3_moe")
    inventory = family_of(config).inventory(config)
    plan = Plan.of(inventory, [LayerPlan(drop="block"), LayerPlan(drop="moe"), FORMS[form]])
    own, written, after = stated(config, plan)
    assert [layer.form is None for layer in after.layers] == [True, False] and own.inventory(written) == after
    other = "8 bits" if form != "8 bits" else "factors"
    forms = Plan.of(inventory, [FORMS[form], LayerPlan(), FORMS[other]])
    own, written, after = stated(config, forms)
    assert own.inventory(written) == after and after.layers[0].form != after.layers[2].form
    gone = Plan.of(after, [LayerPlan(drop="block"), LayerPlan(), LayerPlan()])
    own, again, last = stated(written, gone)
    assert own.inventory(again) == last and [layer.form for layer in last.layers] == [None, after.layers[2].form]


def test_unknown_keys_of_a_layer_are_refused() -> None:
    config = config_of("olmoe")
    plan = everywhere(family_of(config).inventory(config), FORMS["factors"])
    family, written, _ = stated(config, plan)
    written["per_layer_config"]["1"]["expert_forms"] = {}
    with pytest.raises(CheckpointError, match=r"layer 1 states expert_forms, .*allowed: .*expert_form"):
        family.inventory(written)


def test_damage_is_found_where_a_checkpoint_is_opened() -> None:
    config = config_of("olmoe")
    plan = everywhere(family_of(config).inventory(config), FORMS["factors"])
    family, written, _ = stated(config, plan)
    written["per_layer_config"]["2"][FORM_KEY]["ranks"].pop()
    with pytest.raises(CheckpointError, match=r"of layer 2 .* ranks must be 8 rows"):
        family.inventory(written)
