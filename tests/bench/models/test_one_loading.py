"""Whoever loads a checkpoint, transformers or we, the model is the same: types, buffers, ties, settings of generation, logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.models.filled import filled_model
from bench.models.load import load_model
from methods.framework.errors import CheckpointError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.applying.test_apply import plans
from tests.support.inside_plans import FORMS, SELECTIONS, everywhere, fitting
from tests.support.inside_slowly import drawn_moments
from tests.support.masking import logits
from tests.support.published import CORRECTION, dtypes, published
from tests.support.tiny import FAMILIES, tiny_tokens

CELLS = [(family, dtype) for family in FAMILIES for dtype in (torch.float32, torch.bfloat16)]
CELLS.append(("deepseek_v3", torch.float16))
TOKENS = tiny_tokens(2, 12)


def ties(model: PreTrainedModel) -> set[tuple[str, ...]]:
    """Return the names that stand for one parameter, for each that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter.data_ptr(), []).append(name)
    return {tuple(sorted(same)) for same in names.values() if len(same) > 1}


def generation(model: PreTrainedModel) -> dict[str, Any]:
    """Return the settings that ``model`` generates with."""
    return dict(model.generation_config.to_dict())


def check_equal(ours: PreTrainedModel, theirs: PreTrainedModel) -> None:
    """Check that two models of one checkpoint are the same in all that a benchmark could notice."""
    assert dtypes(ours) == dtypes(theirs)
    assert ties(ours) == ties(theirs)
    assert generation(ours) == generation(theirs)
    assert ours.dtype == theirs.dtype
    if ours.config.name_or_path == theirs.config.name_or_path:
        assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.training == theirs.training
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.config._experts_implementation == theirs.config._experts_implementation
    kept = dict((*theirs.named_parameters(), *theirs.named_buffers()))
    for name, tensor in (*ours.named_parameters(), *ours.named_buffers()):
        assert torch.equal(tensor, kept[name]), name
        assert tensor.requires_grad == kept[name].requires_grad, name
    assert torch.equal(logits(ours, TOKENS), logits(theirs, TOKENS))


@pytest.mark.parametrize(("family", "dtype"), CELLS, ids=str)
def test_a_model_that_we_fill_is_the_one_that_transformers_load(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    source = published(family, tmp_path / "source", tie_word_embeddings=family in ("mixtral", "qwen3_moe"))
    identity = Checkpoint.open(apply(source, Plan.of(source.inventory, [LayerPlan()] * 3), tmp_path / "identity"))
    theirs = load_model(source.path, dtype)
    check_equal(filled_model(type(theirs), source, dtype), theirs)
    check_equal(load_model(identity.path, dtype), theirs)
    check_equal(filled_model(type(theirs), identity, dtype), theirs)
    assert generation(theirs)["eos_token_id"] == [1, 5, 9]
    wide = {name for name, kept in dtypes(theirs).items() if kept == torch.float32 and name.endswith(CORRECTION)}
    assert len(wide) == (2 if family == "deepseek_v3" else 0)


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen2_moe"])
def test_so_it_is_where_layers_differ(family: str, tmp_path: Path) -> None:
    source = published(family, tmp_path / "source")
    out = Checkpoint.open(apply(source, plans(source.inventory)["different"], tmp_path / "out"))
    theirs = load_model(out.path, torch.bfloat16)
    check_equal(filled_model(type(theirs), out, torch.bfloat16), theirs)


def test_so_it_is_without_settings_of_generation(tmp_path: Path) -> None:
    source = published("mixtral", tmp_path, generation=False)
    theirs = load_model(source.path)
    check_equal(filled_model(type(theirs), source, torch.float32), theirs)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_keeps_what_the_source_has(form: str, tmp_path: Path) -> None:
    """Only the routed experts differ from the source: everything else has its type, values and settings."""
    source = published("deepseek_v3", tmp_path / "source")
    moments = drawn_moments(source.inventory)
    plan = everywhere(source.inventory, fitting(form, SELECTIONS["all"]))
    base = load_model(source.path, torch.bfloat16)
    model = load_model(apply(source, plan, tmp_path / "out", moments=moments), torch.bfloat16)
    assert generation(model) == generation(base)
    scaled = form == "scaled inputs"
    found = {n: t for n, t in (*model.named_parameters(), *model.named_buffers()) if ".mlp.experts." not in n}
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        if ".mlp.experts." not in name:
            assert found[name].dtype == tensor.dtype, name
            assert scaled or torch.equal(found[name], tensor), name
    kept = {name: t for name, t in found.items() if name.endswith(CORRECTION)}
    assert {t.dtype for t in kept.values()} == {torch.float32}
    assert all(np.unique(t.numpy()).size == t.numel() for t in kept.values()), "biases were rounded to equal ones"


def test_settings_of_generation_that_are_damaged_are_an_error(tmp_path: Path) -> None:
    """Transformers would go on without them and a word."""
    source = published("olmoe", tmp_path)
    for text in ('{"eos_token_id": [1,', "[]", '{"pad_token_id": NaN}'):
        (source.path / "generation_config.json").write_text(text)
        with pytest.raises(
            CheckpointError, match=r"generation_config\.json.*remove it to generate as config\.json says"
        ):
            load_model(source.path)


def test_a_head_that_should_be_the_embedding_and_is_not(tmp_path: Path) -> None:
    """Transformers would use it and we would not."""
    source = published("olmoe", tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / SINGLE)
    embedding = tensors["model.embed_tokens.weight"]

    def opened(head: torch.Tensor) -> Checkpoint:
        save_file({**tensors, "lm_head.weight": head}, tmp_path / SINGLE, metadata={"format": "pt"})
        return Checkpoint.open(tmp_path)

    again = opened(embedding.clone())
    check_equal(filled_model(type(load_model(source.path)), again, torch.float32), load_model(again.path))
    other = embedding.clone()
    other[-1, -1] += 1.0
    for head in (other, embedding.float()):
        with pytest.raises(CheckpointError, match=r"its lm_head\.weight is not its model\.embed_tokens\.weight"):
            opened(head)
