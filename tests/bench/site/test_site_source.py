"""The source of the site: links that lead somewhere in it, every page in the navigation, every verb in the reference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.cli import VERBS
from bench.site.__main__ import lay_out
from bench.site.navigation import SECTIONS, lay_out_navigation
from bench.site.reference import command_page, library_page
from bench.site.site_source import relinked
from methods.framework.errors import ConfigError
from tests.support.places import ROOT

PLACES = {"README.md": "readme.md", "docs/design.md": "design.md", "docs/papers/field.md": "papers/field.md"}


@pytest.mark.parametrize(
    ("source", "text", "made"),
    [
        ("README.md", "[a](docs/design.md)", "[a](design.md)"),
        ("README.md", "![a](docs/design.md)", "![a](design.md)"),
        ("docs/papers/field.md", "[a](../design.md#rooms)", "[a](../design.md#rooms)"),
        ("docs/papers/field.md", "[a](../../README.md)", "[a](../readme.md)"),
        (
            "docs/design.md",
            "[a](../README.md), [b](#here), [c](https://x.y/z)",
            "[a](readme.md), [b](#here), [c](https://x.y/z)",
        ),
        ("docs/design.md", "[presets](../sweeps/presets)", "presets (`sweeps/presets`)"),
        ("docs/design.md", "```bash\n[a](../README.md)\n```", "```bash\n[a](../README.md)\n```"),
    ],
)
def test_links_follow_their_pages(source: str, text: str, made: str) -> None:
    assert relinked(text, source, PLACES) == made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "source"
    lay_out(ROOT, out)
    return out


def test_links_of_the_site_lead_somewhere(source: Path) -> None:
    broken = [
        f"{page.relative_to(source)}: {link}"
        for page in source.rglob("*.md")
        for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


def test_every_page_is_in_the_navigation(source: Path) -> None:
    named = {"index", "README"}
    for page in source.rglob("*.md"):
        for block in re.findall(r"(?ms)^```\{toctree\}\n:hidden:\n\n(.*?)^```", page.read_text()):
            names = [re.sub(r"^.*<(.+)>$", r"\1", line) for line in block.splitlines() if line]
            named |= {(page.parent / name).relative_to(source).as_posix() for name in names}
    pages = {page.relative_to(source).with_suffix("").as_posix() for page in source.rglob("*.md")}
    assert pages - named == set() and named - pages == {"README"}


def test_no_page_takes_a_name_of_sphinx(source: Path) -> None:
    assert not any((source / f"{name}.md").exists() for name in ("search", "genindex"))


def test_a_section_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "index.md").write_text("# moebench\n\n## Use it\n\ntext\n")
    missing = list(SECTIONS)[1]
    with pytest.raises(ConfigError, match=f"no section '{missing}'"):
        lay_out_navigation(tmp_path)


def test_every_verb_and_its_options_are_in_the_reference() -> None:
    page = command_page()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == [verb.name for verb in VERBS]
    part = page.split("\n## solve\n")[1].split("\n## ")[0]
    assert "| `--budget` |  | quantity=limit" in part and "| `--best` | `20` |" in part and "`--help`" not in part


def test_the_library_reference_names_what_is_offered() -> None:
    page = library_page()
    assert ".. autofunction:: bench.compress" in page and ".. autoclass:: methods.LayerwiseMethod" in page
