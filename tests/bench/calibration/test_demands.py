"""What methods need, told from shapes: the bytes that statistics really have, and how the model runs."""

from __future__ import annotations

from bench.calibration.demands import demand, stat_bytes
from bench.laws.cases import case
from methods.framework.stats import CATALOGUE
from methods.registry import method_class
from tests.support.tiny import FAMILIES


def test_the_bytes_are_those_of_the_arrays() -> None:
    for family in FAMILIES:
        one = case(family)
        for name, values in one.stats.values.items():
            width = 4 if CATALOGUE[name].on_disk else 8
            held = sum(value.size for value in values if value is not None) * width
            assert stat_bytes(one.inventory, [name], 48) == held, name


def test_how_the_model_runs_follows_from_the_statistics() -> None:
    inventory = case("mixtral").inventory
    runs = {name: demand(method_class(name)(), inventory).runs for name in ("rtn", "reap", "hc_smoe", "heapr", "diep")}
    assert runs == {
        "rtn": "nothing",
        "reap": "one pass, chosen experts",
        "hc_smoe": "one pass, every expert on sampled tokens",
        "heapr": "the whole model in memory, forward and backward",
        "diep": "candidates, layer by layer",
    }
    refused = demand(method_class("naee")(), case("mixtral", experts=128).inventory)
    assert refused.refusal is not None and "128 experts" in refused.refusal
