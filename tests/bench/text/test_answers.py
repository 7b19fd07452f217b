"""Answers in conversations: which tokens the chat template marks, and what is refused where nothing marks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.records.mirror import Tracker
from bench.running.run import Run
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import validated
from bench.store.store import Store
from bench.text.corpus import parse
from bench.text.encoder import Encoder
from methods.framework.errors import ConfigError
from sweeps.grid_config import GridConfig, jobs
from tests.bench.text.test_mixture import TEMPLATE, TURNS, WORDS, written
from tests.bench.text.test_opening import made

MARKING = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }} </s> {% endgeneration %}{% else %}{{ m.content }} </s>{% endif %}{% endfor %}"
)
TALK = [*TURNS, {"role": "user", "content": "w4"}, {"role": "assistant", "content": "w5 w6"}]
IDS = (1, 3, 6, 7, 2, 4, 8, 2, 3, 9, 2, 4, 10, 11, 2)
ANSWERS = tuple(place in (6, 7, 12, 13, 14) for place in range(15))


@pytest.fixture(scope="module")
def marking(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A model whose template ends each answer in a space, which is part of no token."""
    folder = tmp_path_factory.mktemp("marking")
    return made(folder, "<s>", WORDS, bos_token="<s>", eos_token="</s>", chat_template=MARKING)


def test_tokens_of_answers_are_those_that_the_template_marks(marking: Checkpoint) -> None:
    encoder = Encoder(marking)
    assert encoder.answers(TALK, "here") == (list(IDS), list(ANSWERS))
    assert encoder.answers(TALK, "here")[0] == encoder.chat(TALK, "here")


def test_windows_carry_their_marks(marking: Checkpoint, tmp_path: Path) -> None:
    spec = written(tmp_path / "talk.jsonl", *[{"messages": TALK}] * 6)
    whole = parse(spec, marking, 2, 15, answers_only=True)
    assert whole.windows == (IDS, IDS) and whole.marks == (ANSWERS, ANSWERS) and whole.counted == 10
    plain = parse(spec, marking, 2, 15)
    assert plain.windows == whole.windows and plain.marks is None and plain.counted == 30
    assert plain.digest != whole.digest, "what counts is part of the text's digest"
    cut = parse(spec, marking, 2, 9, answers_only=True)
    assert cut.windows == (IDS[:9], (1, *IDS[9:], *IDS[:2]))
    assert cut.marks is not None and cut.marks[0] == ANSWERS[:9]
    assert cut.windows[1][0] == 1 and not cut.marks[1][0], "a beginning that is added does not count"
    assert cut.marks[1][1:7] == ANSWERS[9:]


def test_a_data_set_of_conversations_has_answers_too(
    marking: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "train.jsonl", *[{"messages": TALK, "text": "w1 w2"}] * 6)
    corpus = parse(f"datasets:{tmp_path / 'data'}::train:messages", marking, 3, 15, answers_only=True)
    assert corpus.marks == (ANSWERS,) * 3
    with pytest.raises(ConfigError, match=r"document 0 .* is no conversation"):
        parse(f"datasets:{tmp_path / 'data'}", marking, 3, 15, answers_only=True)


def test_without_marks_of_answers_there_is_a_reason(marking: Checkpoint, tmp_path: Path) -> None:
    spec = written(tmp_path / "talk.jsonl", *[{"messages": TALK}] * 6)
    bare = made(tmp_path / "bare", "<s>", WORDS, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    with pytest.raises(ConfigError, match="the chat template of bare does not say where answers are"):
        parse(spec, bare, 2, 15, answers_only=True)
    (tmp_path / "a.txt").write_text("w1 " * 500)
    for other in (str(tmp_path / "a.txt"), f"{spec}=0.5,{tmp_path / 'a.txt'}=0.5", "pocket"):
        with pytest.raises(ConfigError, match=r"is no conversation.*answers_only: false"):
            parse(other, marking, 2, 15, answers_only=True)
    questions = written(tmp_path / "asked.jsonl", *[{"messages": TALK[:1]}] * 6)
    with pytest.raises(ConfigError, match="no token of its windows counts"):
        parse(questions, marking, 2, 5, answers_only=True)


def test_the_setting_is_left_out_where_it_is_off() -> None:
    on, off = (validated({"answers_only": value}, CalibrationConfig, "here") for value in (True, False))
    assert on.model_dump()["answers_only"] is True and "answers_only" not in off.model_dump()


def test_a_record_states_how_many_tokens_count(marking: Checkpoint, tmp_path: Path) -> None:
    spec = written(tmp_path / "talk.jsonl", *[{"messages": TALK}] * 6)
    calibration = {"corpora": [spec], "sequences": 2, "length": 15, "answers_only": True}
    grid = GridConfig.model_validate(
        {
            "models": [str(marking.path)],
            "methods": ["frequency"],
            "keeps": [0.5],
            "calibration": calibration,
            "evaluation": {"tasks": []},
        }
    )
    config = jobs(grid, tmp_path)[1].config
    assert config.calibration.answers_only
    plain = config.model_copy(update={"calibration": config.calibration.model_copy(update={"answers_only": False})})
    silent = Tracker("disabled", folder=tmp_path)
    marked, whole = (
        Run(RunConfig.model_validate(one), Store(tmp_path), silent).execute()[1] for one in (config, plain)
    )
    assert marked.status == "complete" and marked.corpus is not None and whole.corpus is not None
    assert (marked.corpus.tokens, marked.corpus.counted) == (30, 10)
    assert (whole.corpus.tokens, whole.corpus.counted) == (30, None)
    assert marked.id != whole.id
