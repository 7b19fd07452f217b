"""Kinds of models that no family file can state are refused with their own reason, which is true of the transformers here."""

from __future__ import annotations

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bench.families.family import family_of
from bench.families.known_families import read_families
from bench.families.unsupported import NO_CLASS, UNSUPPORTED
from methods.framework.errors import NotMoEError


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_the_reason_is_told_where_there_are_experts(kind: str) -> None:
    for config in ({"num_experts": 8}, {"text_config": {"num_experts": 8}}):
        with pytest.raises(NotMoEError) as refusal:
            family_of({"model_type": kind, **config})
        assert f"model_type {kind!r} is refused: its routed experts cannot be handled: {UNSUPPORTED[kind]}." in str(
            refusal.value
        )
    with pytest.raises(NotMoEError, match="it is a dense model"):
        family_of({"model_type": kind, "text_config": {"num_experts": None}})


def test_no_class_is_missing_that_is_there() -> None:
    assert {kind for kind in UNSUPPORTED if kind not in CONFIG_MAPPING} == set(NO_CLASS)
    assert not {kind for file in read_families().values() for kind in file.all_model_types} & UNSUPPORTED.keys()
