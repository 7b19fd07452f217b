"""The card of a written checkpoint: what it says, that the hub's own classes read it, and that it is the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from bench.applying.apply import apply
from bench.cards.model_card import card_files, is_stock, write_card
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import PLAN_FILE
from bench.settings.stage_settings import EvaluationConfig
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.records.test_mirror import record
from tests.support.records import score
from tests.support.tiny import tiny_checkpoint

SOURCE_CARD = """---
license: other
license_name: lab-licence
language:
- en
tags: [x]
model-index:
- name: source
  results: []
---
# Source
"""
FEW = LayerPlan(experts=(0, 3))
SCORED = record(
    scores=(
        score("arc_easy", 0.5, metric="acc", dataset="allenai/ai2_arc", subset="ARC-Easy"),
        score("arc_easy", 0.625, metric="acc_norm", dataset="allenai/ai2_arc", subset="ARC-Easy"),
        score("own/task", 0.25),
        score("wiki", 12.5, metric="word_perplexity", dataset="lab/wiki"),
    )
)


def source(folder: Path, card: str = SOURCE_CARD) -> Checkpoint:
    tiny_checkpoint("mixtral", folder)
    (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("words")
    return Checkpoint.open(folder)


def written(folder: Path, *layers: LayerPlan, card: str = SOURCE_CARD) -> Path:
    opened = source(folder / "lab model", card)
    plan = Plan.of(opened.inventory, layers or [FEW] * 3)
    return apply(opened, plan, folder / "out", provenance={"method": "reap", "knobs": {"keep": 0.25}})


def test_a_written_checkpoint_tells_what_was_done_and_carries_the_licence(tmp_path: Path) -> None:
    out = written(tmp_path)
    text = (out / "README.md").read_text()
    card = ModelCard(text)
    assert (card.data.license, card.data.license_name, card.data.language) == ("other", "lab-licence", ["en"])
    assert card.data.tags == ["mixture-of-experts", "compressed", "moebench", "reap", "experts"]
    assert card.data.base_model is None and card.data.eval_results is None
    assert "# lab model: REAP, keep 0.25" in text and "arXiv 2510.13999" in text
    assert "- Layers 0 to 2: 2 experts stay" in text and "lab-licence; see `LICENSE`" in text
    before, after = (cost_of(Checkpoint.open(path).inventory) for path in (tmp_path / "lab model", out))
    share = 100 * after.bytes / before.bytes
    assert f"| bytes of weights | {before.bytes:,} | {after.bytes:,} | {share:.1f} % |" in text
    assert "from transformers import MixtralForCausalLM" in text and "vllm serve PATH" in text
    assert "## Scores" not in text and str(tmp_path) not in text


def test_the_same_checkpoint_has_the_same_card_and_the_card_is_no_content(tmp_path: Path) -> None:
    out = written(tmp_path)
    before, content = (out / "README.md").read_bytes(), Checkpoint.open(out).content
    again = apply(
        Checkpoint.open(tmp_path / "lab model"), Plan.loads((out / PLAN_FILE).read_bytes()), tmp_path / "again"
    )
    write_card(out)
    assert (out / "README.md").read_bytes() == before, "made again from the folder alone"
    assert Checkpoint.open(out).content == content == Checkpoint.open(again).content


def test_scores_stand_in_the_card_and_in_the_files_of_the_hub(tmp_path: Path) -> None:
    out = written(tmp_path)
    asked = EvaluationConfig(tasks=("arc_easy",), limit=400, num_fewshot=0)
    write_card(out, SCORED, asked)
    card = ModelCard((out / "README.md").read_text())
    results = card.data.eval_results
    assert [(one.dataset_type, one.metric_type, one.metric_value) for one in results] == [
        ("allenai/ai2_arc", "acc", 0.5),
        ("allenai/ai2_arc", "acc_norm", 0.625),
        ("own/task", "acc", 0.25),
        ("lab/wiki", "word_perplexity", 12.5),
    ]
    assert "0-shot, float32, the first 400 items of each task" in card.text
    assert sorted(path.name for path in (out / ".eval_results").iterdir()) == ["arc_easy.yaml"]
    [entry] = parse_eval_result_entries(yaml.safe_load((out / ".eval_results" / "arc_easy.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/ai2_arc", "ARC-Easy", 0.625)
    assert (
        entry.notes is not None and "acc_norm" in entry.notes and "0-shot" in entry.notes and "n = 400" in entry.notes
    )
    first = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    write_card(out, SCORED, asked)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    write_card(out, record(scores=()))
    assert not list((out / ".eval_results").iterdir()), "results of another record do not stay"


def test_paired_differences_stand_with_their_interval(tmp_path: Path) -> None:
    text = card_files(written(tmp_path), record())["README.md"]
    assert "| arc_easy | acc | 0.5000 ± 0.1000 | -0.1000 [-0.2000, +0.0000] | 10 |" in text
    assert "| gsm | acc (strict) | 0.5000 |  | 10 |" in text


def test_what_went_on_from_a_result_tells_of_both(tmp_path: Path) -> None:
    first = Checkpoint.open(written(tmp_path))
    drop = [LayerPlan(), LayerPlan(drop="moe"), LayerPlan()]
    second = apply(first, Plan.of(first.inventory, drop), tmp_path / "second", provenance={"method": "layer_drop"})
    text = (second / "README.md").read_text()
    assert "# lab model: REAP, keep 0.25, then Layer Drop" in text
    assert (
        text.index("1. REAP")
        < text.index("2 experts stay")
        < text.index("2. Layer Drop")
        < text.index("Layer 1: its MoE")
    )
    sizes = cost_of(Checkpoint.open(tmp_path / "lab model").inventory)
    assert f"| parameters | {sizes.parameters:,} |" in text, "beside those of the first source"
    assert "moebench serve PATH" in text and "from bench import load_model" in text
    assert ModelCard(text).data.library_name == "moebench" and ModelCard(text).data.license_name == "lab-licence"


def test_a_source_of_the_hub_is_the_base_model(tmp_path: Path) -> None:
    out = written(tmp_path)
    document = json.loads((out / PLAN_FILE).read_text())
    document["provenance"]["source"] |= {"name": "lab/model", "revision": "abc"}
    (out / PLAN_FILE).write_text(json.dumps(document))
    card = ModelCard(card_files(out)["README.md"])
    assert card.data.base_model == "lab/model"
    assert "[lab/model](https://huggingface.co/lab/model) at revision `abc`" in card.text


@pytest.mark.parametrize(
    "card", ["no front", "---\n[unclosed\n---\n", "---\n- a list\n---\n", "---\nlicense: [1]\n---\n"]
)
def test_a_card_of_the_source_that_cannot_be_read_says_nothing(tmp_path: Path, card: str) -> None:
    text = (written(tmp_path, card=card) / "README.md").read_text()
    assert "names no licence" in text and "`LICENSE`" in text and ModelCard(text).data.license is None


def test_a_folder_of_others_has_no_card_of_ours(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing tells what was done"):
        card_files(tiny_checkpoint("mixtral"))


def test_several_ways_to_quantise_are_not_read_by_stock_loaders() -> None:
    one = {"architectures": ["MixtralForCausalLM"], "quantization_config": {"config_groups": {"a": {}}}}
    assert is_stock(one) and is_stock({"architectures": ["MixtralForCausalLM"]})
    assert not is_stock({**one, "quantization_config": {"config_groups": {"a": {}, "b": {}}}})
    assert not is_stock({"architectures": ["MoebenchMixtralForCausalLM"]})
