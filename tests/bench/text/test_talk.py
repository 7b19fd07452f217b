"""Conversations of a corpus in the model's template: a system's turn, thinking, arguments of the template's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.pocket import pocket_path
from bench.running.identity import own_key
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.text.corpus import Corpus, parse
from bench.text.template import Talk
from methods.framework.errors import ConfigError
from methods.registry import method_class

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    "{% if thinking %}boy {% endif %}{% if effort == 'high' %}girl {% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    """A pocket model with a chat template."""
    (folder := tmp_path / "model").mkdir()
    for file in pocket_path("pocket-mixtral").iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return Checkpoint.open(folder)


@pytest.fixture
def read(tmp_path: Path, model: Checkpoint) -> Callable[..., Corpus]:
    """Return the corpus of three conversations, the last with a system's turn of its own."""
    turns = [[{"role": "user", "content": "boy eats bread ."}, {"role": "assistant", "content": "girl ."}]] * 2
    turns.append([{"role": "system", "content": "bread"}, *turns[0]])
    file = tmp_path / "chat.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))

    def corpus(spec: str = f"chat:{file}", **talk: Any) -> Corpus:
        return parse(spec, model, 2, 8, talk=Talk(**talk))

    return corpus


def test_what_a_template_is_told_changes_the_text(read: Callable[..., Corpus]) -> None:
    plain = read()
    others = [read(system="girl"), read(thinking=True), read(arguments={"effort": "high"})]
    assert len({plain.digest, *(one.digest for one in others)}) == 4
    assert read(thinking=False).digest == plain.digest and read(arguments={"effort": "low"}).digest == plain.digest
    assert others[0].talk == Talk(system="girl")


def test_a_system_turn_of_its_own_stays() -> None:
    talk, own = Talk(system="girl"), [{"role": "system", "content": "bread"}, {"role": "user", "content": "boy"}]
    assert talk.begun(own) == own
    assert talk.begun(own[1:]) == [{"role": "system", "content": "girl"}, *own[1:]]


def test_what_would_change_nothing_is_refused(read: Callable[..., Corpus]) -> None:
    with pytest.raises(ConfigError, match="does not know the argument depth"):
        read(arguments={"depth": 3})
    with pytest.raises(ConfigError, match="holds no conversations"):
        read("pocket", system="girl")


def test_settings_of_a_calibration_say_it(model: Checkpoint) -> None:
    plain = CalibrationConfig()
    fields = {
        "system_instruction": "girl",
        "enable_thinking": True,
        "template_arguments": {"effort": "high", "depth": 3},
    }
    spoken = validated(fields, CalibrationConfig, "file")
    assert Talk.of(spoken) == Talk("girl", True, {"effort": "high", "depth": 3}) and Talk.of(plain).silent
    assert validated(spoken.model_dump(), CalibrationConfig, "again") == spoken
    assert fields.keys() <= spoken.model_dump().keys() and not fields.keys() & plain.model_dump().keys()
    run = RunConfig(model=str(model.path))
    assert own_key(run, method_class("reap")(), None, None) == own_key(
        run.model_copy(update={"calibration": spoken}), method_class("reap")(), None, None
    ), "the digest of the tokens tells what they are"
