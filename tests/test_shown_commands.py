"""Every command that the documentation shows would be taken: verbs, options, values, files, targets and modules exist."""

from __future__ import annotations

import pytest

from bench.site.method_page import method_command
from methods.registry import BUILT_IN, method_class
from tests.support.places import ROOT
from tests.support.shown_commands import LANGUAGES, Shown, commands, faults, languages, pages, spans

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages()}


def test_every_fenced_block_says_what_it_is() -> None:
    assert {
        name: sorted({*languages(text)} - LANGUAGES) for name, text in PAGES.items() if {*languages(text)} - LANGUAGES
    } == {}


@pytest.mark.parametrize("name", PAGES)
def test_commands_would_be_taken(name: str) -> None:
    found = [f"{shown}\n  {fault}" for shown in commands(name, PAGES[name]) for fault in faults(shown)]
    found += [f"{shown}\n  {fault}" for shown in spans(name, PAGES[name]) for fault in faults(shown, whole=False)]
    assert not found, "\n".join(found)


def test_there_are_commands() -> None:
    assert len([*commands("README.md", PAGES["README.md"])]) >= 10
    assert sum(len([*spans(name, text)]) for name, text in PAGES.items()) >= 40


@pytest.mark.parametrize("name", BUILT_IN)
def test_commands_of_the_pages_of_methods_would_be_taken(name: str) -> None:
    text = "```bash\n" + "\n".join(method_command(method_class(name))) + "\n```\n"
    (shown,) = commands("page", text)
    assert shown.words[:2] == ("moebench", "run") and faults(shown) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("moebench rum --model pocket-mixtral", "no such verb"),
        ("moebench run --modl pocket-mixtral", "--modl"),
        ("moebench run --model pocket-mixtral --method reep", "reep"),
        ("moebench run --model pocket-mixtral --method naee:batches=0", "batches"),
        ("moebench sweep sweeps/presets/nowhere.yaml", "no such file"),
        ("moebench plan pocket-mixtral --method frequency", "--method"),
        ("moebench cost pocket-mixtral", "plan_file"),
        ("moebench solve table.json --best many", "--best"),
        ("make dmeo", "no such target"),
        ("python -m sweeps.race sweeps/races/experts.yaml", "no such module"),
        ("python -m sweeps.racing sweeps/races/experts.yaml --stoer x", "--stoer"),
        ("python examples/search_knobs.py --trails 4", "--trails"),
        ("pytest tests/nowhere.py", "no such file"),
        ("vllm serve half --no-such-option-there", "not an option"),
        ("curl https://x.y", "no class of commands"),
    ],
)
def test_a_wrong_command_is_seen(line: str, told: str) -> None:
    assert told in " ".join(faults(Shown("page", tuple(line.split()))))


def test_continued_lines_comments_and_chains_are_read() -> None:
    text = "```bash\nmake setup && moebench run \\\n  --model x  # why\n# nothing\n```\n```python\nmake = 1\n```\n"
    assert [shown.words for shown in commands("page", text)] == [("make", "setup"), ("moebench", "run", "--model", "x")]
    assert languages(text) == ["bash", "python"]
    assert [shown.words for shown in spans("page", "as `moebench run --keep 0.5` does, `reap` not")] == [
        ("moebench", "run", "--keep", "0.5")
    ]
