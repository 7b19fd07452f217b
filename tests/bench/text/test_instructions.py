"""Instructions and answers as calibration text: template, order and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.text.instructions import filled, instruction_texts
from methods.framework.errors import ConfigError


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_each_object_becomes_one_text(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet {output}.", "response": "Hello"},
    )
    texts = list(instruction_texts(str(path), seed=0))
    assert sorted(texts) == [
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3",
        "### Instruction:\nGreet {output}.\n\n### Response:\nHello",
    ]


def test_the_seed_chooses_the_order_and_a_template_may_be_given(tmp_path: Path) -> None:
    path = written(tmp_path, *({"instruction": str(n), "output": "x"} for n in range(9)))
    template = tmp_path / "template.txt"
    template.write_text("Q {instruction} A {output}")
    first, second = (list(instruction_texts(f"{path}:{template}", seed)) for seed in (0, 1))
    assert first != second and sorted(first) == sorted(second) == [f"Q {n} A x" for n in range(9)]
    assert filled("{output}{input}", {"instruction": "", "input": "b", "output": "a"}) == "ab"


def test_what_is_no_instruction_is_refused(tmp_path: Path) -> None:
    for row in ([1], {"instruction": "a"}, {"instruction": "a", "output": 3}):
        with pytest.raises(ConfigError, match="instruction and output"):
            list(instruction_texts(str(written(tmp_path, row)), 0))
    template = tmp_path / "template.txt"
    template.write_text("{instruction}")
    with pytest.raises(ConfigError, match=r"does not hold \{output\}"):
        list(instruction_texts(f"{written(tmp_path, {})}:{template}", 0))
