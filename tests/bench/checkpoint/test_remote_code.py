"""Code that lies beside a model is run where it is trusted, and named where it is not; no other tokenizer takes its place."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.cli import main
from bench.evaluation.evaluate import _tokenizer_digest
from bench.models.load import load_tokenizer
from bench.pocket import pocket_path
from bench.records.mirror import Tracker
from bench.running.identity import shared_key
from bench.running.run import Run
from bench.settings.run_settings import RunConfig
from bench.store.store import Store
from bench.text.corpus import parse
from bench.timing.servers import without_tokenizer
from methods.framework.errors import CheckpointError, ConfigError
from sweeps.grid_config import GridConfig, Job, jobs

CODE = """from transformers import PreTrainedTokenizerFast

from .tokenization_words import changed


class OwnTokenizer(PreTrainedTokenizerFast):
    def __call__(self, text, **settings):
        return super().__call__(changed(text), **settings)
"""
WORDS = 'def changed(text):\n    return text.replace("boy", "girl")\n'


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers copy code to a folder of the test."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        monkeypatch.delitem(sys.modules, name)


def with_code(folder: Path, named: object = ("tokenization_own.OwnTokenizer", None)) -> Path:
    """Return a copy of a pocket model whose tokenizer is made by code beside it."""
    folder.mkdir()
    for file in pocket_path("pocket-mixtral").iterdir():
        if file.name == "tokenizer_config.json":
            stated = json.loads(file.read_text())
            stated = {**stated, "tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": named}}
            (folder / file.name).write_text(json.dumps(stated))
        elif file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenization_own.py").write_text(CODE)
    (folder / "tokenization_words.py").write_text(WORDS)
    return folder


def text_of(folder: Path) -> Path:
    text = folder / "text"
    text.write_text("boy eats bread girl .\n" * 40)
    return text


def ids(folder: Path, text: str) -> list[int]:
    return list(load_tokenizer(folder, trust_remote_code=True)(text)["input_ids"])


def test_code_is_refused_unless_it_is_trusted(tmp_path: Path) -> None:
    folder, text = with_code(tmp_path / "model"), text_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"tokenization_own\.OwnTokenizer.*give --trust-remote-code"):
        load_tokenizer(folder)
    with pytest.raises(ConfigError, match="give --trust-remote-code"):
        parse(str(text), Checkpoint.open(folder), 2, 16)
    assert not (tmp_path / "modules").exists(), "nothing of it was run, nor copied to be run"
    assert ids(folder, "boy") == ids(folder, "girl"), "the code was run"
    plain = load_tokenizer("pocket-mixtral")
    assert plain("boy")["input_ids"] != plain("girl")["input_ids"] == ids(folder, "boy")
    own = parse(str(text), Checkpoint.open(folder, trust_remote_code=True), 2, 16)
    assert own.digest != parse(str(text), Checkpoint.open(pocket_path("pocket-mixtral")), 2, 16).digest


def test_what_the_code_says_now_is_what_is_run_and_named(tmp_path: Path) -> None:
    folder = with_code(tmp_path / "model")
    content, tokens = Checkpoint.open(folder).content, load_tokenizer(folder, trust_remote_code=True)
    before = ids(folder, "boy"), _tokenizer_digest(tokens)
    assert _tokenizer_digest(load_tokenizer("pocket-mixtral")) != before[1]
    (folder / "tokenization_words.py").write_text(WORDS.replace("girl", "king"))
    assert Checkpoint.open(folder).content != content, "a file that the code imports is part of the content"
    assert ids(folder, "boy") != before[0]
    (folder / "tokenization_own.py").write_text(CODE + "\n# edited\n")
    assert _tokenizer_digest(load_tokenizer(folder, trust_remote_code=True)) != before[1]


def test_trusted_code_has_to_lie_beside_the_model(tmp_path: Path) -> None:
    for number, named in enumerate(
        ("another/model--tokenization_own.OwnTokenizer", "absent.OwnTokenizer", "below.x.Own")
    ):
        folder = with_code(tmp_path / str(number), [named, None])
        with pytest.raises(CheckpointError, match="does not lie there"):
            open_tokenizer(folder, trust_remote_code=True)
    broken = with_code(tmp_path / "broken")
    (broken / "tokenization_words.py").write_text("raise ValueError('broken here')\n")
    with pytest.raises(CheckpointError, match="broken here"):
        open_tokenizer(broken, trust_remote_code=True)


def test_trust_means_nothing_where_there_is_no_code(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(pocket_path("pocket-mixtral"), trust_remote_code=True)
    assert tokenizer("boy")["input_ids"] == load_tokenizer("pocket-mixtral")("boy")["input_ids"]
    assert "tokenizer in" in (without_tokenizer(with_code(tmp_path / "model")) or "")
    assert without_tokenizer(pocket_path("pocket-mixtral")) is None


def test_a_run_states_that_it_trusted(tmp_path: Path) -> None:
    folder, text = with_code(tmp_path / "model"), text_of(tmp_path)
    settings = {
        "model": str(folder),
        "methods": [{"name": "frequency", "knobs": {"keep": 0.5}}],
        "calibration": {"corpus": str(text), "sequences": 2, "length": 16},
        "timing": {"enabled": False},
    }
    plain, trusting = (RunConfig.model_validate({**settings, "trust_remote_code": trust}) for trust in (False, True))
    assert "trust_remote_code" not in plain.model_dump() and trusting.model_dump()["trust_remote_code"] is True
    first, second = (shared_key(one, "content", {}) for one in (plain, trusting))
    assert first == {name: value for name, value in second.items() if name != "trust_remote_code"} != second
    store = Store(tmp_path / "store")
    silent = Tracker("disabled", folder=store.root)
    with pytest.raises(ConfigError, match="give --trust-remote-code"):
        Run(plain, store, silent).execute()
    records = Run(trusting, store, silent).execute()
    assert [record.status for record in records] == ["complete", "complete"]
    assert all(record.model.trust_remote_code for record in records)
    made = next(path for path in store.checkpoints.iterdir() if path.is_dir())
    assert ids(made, "boy") == ids(folder, "boy"), "the result brings its code along"


def test_every_verb_that_reads_text_has_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, text = with_code(tmp_path / "model"), text_of(tmp_path)
    words = ["--corpus", str(text), "--sequences", "2", "--length", "16", "--store", str(tmp_path / "store")]
    call = ["moebench", "calibrate", str(folder), "--needs", "routed_tokens", *words]
    for more, status in (([], 1), (["--trust-remote-code"], 0)):
        monkeypatch.setattr(sys, "argv", [*call, *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert int(end.value.code or 0) == status
        assert ("give --trust-remote-code" in " ".join(capsys.readouterr().err.split())) == bool(status)
    for verb in ("run", "plan", "apply", "recover"):
        monkeypatch.setattr(sys, "argv", ["moebench", verb, "--help"])
        with pytest.raises(SystemExit):
            main()
        assert "--trust-remo" in capsys.readouterr().out, verb  # long names are cut in a narrow terminal


def test_a_grid_hands_trust_to_its_jobs(tmp_path: Path) -> None:
    grid = GridConfig.model_validate(
        {"models": ["m"], "methods": ["frequency"], "evaluation": {"tasks": ["x"]}, "trust_remote_code": True}
    )
    made = jobs(grid, tmp_path)
    assert len(made) == 2 and all(Job.of(job.document()).config.trust_remote_code for job in made)
