"""What README and the first pages of the documentation say is true: verbs, Python examples, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import open_checkpoint
from bench.cli import VERBS
from methods import Stats
from tests.support.places import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [*sorted((ROOT / "docs").glob("papers/*.md")), ROOT / "docs" / "methods" / "index.md"]

FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 107, "what is more belongs in docs/"


def test_verbs_of_the_documentation_are_those_of_the_command_line() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    table = page.split("| verb | does |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = [name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(told) == sorted(str(verb.name) for verb in VERBS)


def python_block(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]


def test_the_example_of_the_library_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_block("docs/library.md"), names)
    assert sum(weight.numel() for weight in names["model"].parameters()) == names["half"].cost.parameters
    assert (tmp_path / "half" / "config.json").exists() and "pocket_facts" in capsys.readouterr().out


def test_the_method_of_the_readme_decides() -> None:
    names: dict[str, Any] = {}
    exec(python_block("README.md"), names)
    inventory = open_checkpoint("pocket-mixtral").inventory
    values = tuple(np.arange(8.0) for _ in inventory.layers)
    plan = names["RouterNorm"](keep=0.5).plan(inventory, Stats({"router_probability": values}))
    assert {layer.experts for layer in plan.layers} == {(4, 5, 6, 7)}


def anchor(heading: str) -> str:
    """Return the address that GitHub and the site give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield the links of a page that lead to no file beside it, or to no heading in there."""
    for link in LINK.findall(FENCED.sub("", text)):
        if "://" in link:
            continue
        name, _, place = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            yield link
        elif place and target.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if place not in map(anchor, headings):
                yield link


def test_links_of_the_documentation_lead_somewhere() -> None:
    found = {page.name: [*broken_links(page, page.read_text(encoding="utf-8"))] for page in PAGES}
    assert {name: links for name, links in found.items() if links} == {}


def test_a_broken_link_is_seen() -> None:
    text = "[a](docs/design.md) [b](docs/nowhere.md) [c](docs/design.md#rooms) [d](docs/design.md#no-such) [e](https://x.y)"
    assert [*broken_links(ROOT / "README.md", text)] == ["docs/nowhere.md", "docs/design.md#no-such"]


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = {(ROOT / "docs" / link).resolve() for link in LINK.findall(index)}
    pages = {page.resolve() for page in PAGES} - {(ROOT / "docs" / "index.md").resolve()}
    reports = {path.resolve() for path in (ROOT / "docs" / "results").rglob("*.md")}
    assert sorted(str(page.relative_to(ROOT)) for page in (pages | reports) - named) == []
