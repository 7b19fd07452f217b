"""Opening what all trials share."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bench.checkpoint.checkpoint import Checkpoint
from bench.text.apart import Apart
from bench.text.corpus import parse
from methods.framework.errors import ConfigError
from sweeps.opening import open_resident
from sweeps.resident import Resident, Windows
from tests.support.tiny import tiny_tokens
from tests.support.tiny_sweeps import objectives, settle, sweep


def test_windows_shared_with_the_calibration_are_refused(home: Path, tmp_path: Path) -> None:
    windows = {"corpus": str(home / "calibration.json"), "sequences": 8, "length": 16, "seed": 9}
    with pytest.raises(ConfigError, match="objective nll: 8 of 8 held-out windows are also calibration windows"):
        open_resident(sweep(home, objectives=[{"kind": "nll", "windows": windows}]), tmp_path)


def test_a_study_is_bound_to_its_model_and_its_texts(home: Path, resident: Resident) -> None:
    assert set(resident.identity) == {"model", "calibration", "windows of nll"}
    assert len(set(resident.identity.values())) == 3
    assert torch.equal(resident.calibration, tiny_tokens(8, 16, seed=0))
    held_out = sweep(home).objectives[0].held_out
    assert held_out is not None
    assert torch.equal(resident.windows(held_out), tiny_tokens(8, 16, seed=1))


def test_a_method_of_weights_alone_reads_no_text(home: Path, tmp_path: Path) -> None:
    absent = {"corpus": "absent.txt", "sequences": 8, "length": 16}
    own = {"keep": {"knots": 3, "low": 0.1, "high": 1.0}}
    config = sweep(home, method="weight_norm", space=own, calibration=absent, objectives=objectives(home, "size"))
    opened = open_resident(config, tmp_path)
    assert opened.identity["calibration"] is None and opened.calibration.numel() == 0


def test_an_objective_on_the_calibration_text_counts_every_token(home: Path, tmp_path: Path) -> None:
    config = sweep(home, objectives=objectives(home, "kl"))
    own = config.calibration.model_copy(update={"answers_only": True})
    with pytest.raises(ConfigError, match=r"kl reads whole windows .*answers_only: false"):
        open_resident(config.model_copy(update={"calibration": own}), tmp_path)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Return a folder with a model whose tokenizer reads words, a text of 2,000 words and one of 40."""
    settle(tmp_path)
    table = {"<end>": 0, **{f"w{number}": number + 1 for number in range(100)}}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(tmp_path / "model")
    rng = random.Random(0)
    for name, words in (("text", 2000), ("short", 40)):
        lines = (" ".join(f"w{rng.randrange(100)}" for _ in range(10)) for _ in range(words // 10))
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_texts_of_one_file_keep_apart(texts: Path) -> None:
    windows = {"corpus": str(texts / "text.txt"), "sequences": 12, "length": 32}
    config = sweep(
        texts,
        calibration=windows,
        objectives=[{"kind": "nll", "windows": {**windows, "length": 24, "seed": 1}}],
        final={"choose": {**windows, "seed": 2}, "report": {**windows, "seed": 3}},
    )
    judge = Windows(**{**windows, "sequences": 4, "seed": 4})
    opened = open_resident(config, texts / "store", judge)
    asked = [config.objectives[0].held_out, config.final.choose, config.final.report, judge]
    read = [opened.windows(one).tolist() for one in asked if one is not None]
    read.append(parse(windows["corpus"], Checkpoint.open(texts / "model"), 12, 32).windows)
    for one, other in itertools.combinations(read, 2):
        apart = Apart()
        apart.add(one)
        assert not any(map(apart.passes_window, other))
    longer = config.final.model_copy(update={"report": Windows(**{**windows, "sequences": 40, "seed": 3})})
    with pytest.raises(ConfigError, match=r"too short.*passed over, since other text of the study"):
        open_resident(config.model_copy(update={"final": longer}), texts / "store")


def test_two_seeds_of_a_text_that_holds_no_more_are_refused(texts: Path) -> None:
    windows = {"corpus": str(texts / "short.txt"), "sequences": 1, "length": 40}
    own = [{"kind": "nll", "windows": {**windows, "seed": seed}} for seed in (1, 2)]
    with pytest.raises(
        ConfigError, match=r"nll.* ask for seeds 2 and 1.*holds no more than these windows.*longer text"
    ):
        open_resident(sweep(texts, objectives=own), texts / "store")
