"""The house: rooms whose arrows lead down only, no circle, no name twice, and lists that equal what lies in the folders."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from methods import registry
from methods.framework.method import Method
from tests.support import architecture as house
from tests.support.places import ROOT

FILES = house.modules(ROOT)
ARROWS = house.arrows(FILES)
ORDER = house.stated_order((ROOT / "docs" / "design.md").read_text())


def test_every_file_lies_in_a_room() -> None:
    homeless = [name for name in FILES if house.room_of(name, ORDER) is None and name not in ("bench", "methods")]
    assert homeless == [], "docs/design.md, Rooms, does not name where these lie"


def test_every_room_exists() -> None:
    assert [room for room in ORDER if room not in FILES] == []


def test_arrows_between_rooms_lead_down() -> None:
    assert house.upward(ARROWS, ORDER) == [], "imports that lead from a room to a later one of docs/design.md, Rooms"


def test_an_upward_arrow_is_seen() -> None:
    order = ["a", "a.b", "c"]
    assert house.upward({"a.x": frozenset({"c"}), "c": frozenset({"a.x", "a.b.y"})}, order) == [("a.x", "c")]
    assert house.upward({"a.x": frozenset({"a.b.y"})}, order) == [("a.x", "a.b.y")]


def test_no_files_import_each_other_in_a_circle() -> None:
    assert house.circles(ARROWS) == []


def test_a_circle_is_seen() -> None:
    found = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"}), "d": frozenset({"a"})}
    assert house.circles(found) == [["a", "b", "c"]]


def test_imports_inside_functions_and_for_types_are_arrows(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "low.py").write_text("value = 1\n")
    text = "def late() -> None:\n    from pack import low\n    from pack.low import value\n    import pack.low\n"
    (tmp_path / "pack" / "high.py").write_text(text)
    files = house.modules(tmp_path, ["pack"])
    assert house.arrows(files)["pack.high"] == {"pack.low"}


def test_analysis_reads_records_and_nothing_else() -> None:
    allowed = ("analysis", "bench.records", "methods.framework.errors")
    ends = {end for start, ends in ARROWS.items() if start.startswith("analysis") for end in ends}
    assert [end for end in sorted(ends) if not any(end == a or end.startswith(f"{a}.") for a in allowed)] == []


def test_no_file_is_loose_in_bench_and_no_stem_occurs_twice() -> None:
    assert sorted(path.name for path in (ROOT / "bench").glob("*.py")) == ["__init__.py", "cli.py"]
    assert house.twice((ROOT / "bench").rglob("*.py")) == []
    assert house.twice(
        [Path("a/x.py"), Path("b/x.py"), Path("b/y.py"), Path("a/__init__.py"), Path("__init__.py")]
    ) == ["x"]


def test_no_file_is_called_what_says_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "base", "core", "manager", "misc", "tools"}
    assert [name for name in FILES if empty & set(name.split("."))] == []


@pytest.mark.parametrize(("folders", "most"), [(house.PACKAGES, 400), (("tests",), 500)])
def test_no_file_is_too_long(folders: tuple[str, ...], most: int) -> None:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > most] == []


def test_tests_lie_where_the_product_does() -> None:
    """A folder of tests is named after a room or package; ``laws``, ``e2e``, ``fuzz`` and ``support`` cut across all."""
    across = {"laws", "e2e", "support", "examples", "fuzz"}
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    named = {".".join(folder.parts) for folder in folders if folder.parts and folder.parts[0] not in across}
    assert [name for name in sorted(named) if name not in FILES] == []


def test_the_registry_equals_the_files() -> None:
    """Every method that a file defines is registered under its own name, and every file defines one."""
    files = {
        name for name in FILES if name.count(".") == 1 and name.startswith("methods.") and name != "methods.registry"
    }
    named = {entry.split(":")[0] for entry in registry.BUILT_IN.values()}
    assert {
        name for name in files if name not in named | {"methods.framework", "methods.kernels", "methods.stats"}
    } == set()
    defined = {
        kind.name: f"{kind.__module__}:{kind.__name__}"
        for module in named
        for _, kind in inspect.getmembers(importlib.import_module(module), inspect.isclass)
        if issubclass(kind, Method) and kind.__module__ == module and "name" in vars(kind)
    }
    assert defined == dict(registry.BUILT_IN)
