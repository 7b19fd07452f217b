"""What an edit invalidates: a reader everything, a kernel or a statistic what uses it, the rest nothing."""

from __future__ import annotations

import shutil

import pytest

from bench.calibration import code_digest as digests
from methods.framework.catalogue import CATALOGUE
from methods.registry import method_class
from tests.support.places import ROOT

PROBE = (*digests.ROOMS, "bench.probing")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Copy the files that may be looked at."""
    root = tmp_path_factory.mktemp("tree")
    for package in digests.OWN:
        for path in [*(ROOT / package).rglob("*.py"), *(ROOT / package).rglob("*.toml")]:
            copy = root / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return root


def state(root):
    """Return the digest of every statistic and of some rules, with those of the rooms."""
    found = {name: digests.statistic_digest.__wrapped__(name, root) for name in CATALOGUE}
    found |= {f"rule {name}": digests.decision_digest(method_class(name), root) for name in ("reap", "msan", "naee")}
    measuring, asking = (digests.code_digest.__wrapped__(rooms, root) for rooms in (digests.ROOMS, PROBE))
    return {**found, "rooms": measuring, "probe": asking}


@pytest.fixture(scope="module")
def before(tree):
    return state(tree)


@pytest.fixture
def changed(tree, before):
    """Return a function to what has another digest while a comment stands in a file."""
    return lambda file: _changed(tree, file, before)


def _changed(root, file, before):
    path = root / file
    text = path.read_text() if path.exists() else None
    path.write_text(f"{text or ''}\n# a comment\n")
    after = state(root)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    return {name for name, digest in after.items() if digest != before[name]}


@pytest.mark.parametrize(
    "file",
    [
        "bench/checkpoint/tensor_files.py",
        "bench/families/olmoe.toml",
        "bench/families/expression.py",
        "bench/experts/whole.py",
        "bench/text/corpus.py",
        "bench/models/load.py",
        "bench/calibration/layers/skeleton.py",
        "bench/calibration/sums/grams.py",
        "bench/store/store.py",
        "methods/kernels/routing.py",
        "bench/checkpoint/brought_in.py",
        "bench/families/brought_in.py",
        "bench/experts/brought_in.py",
        "bench/text/brought_in.py",
        "bench/models/brought_in.py",
        "bench/calibration/brought_in.py",
    ],
)
def test_an_edited_reader_is_seen_by_all(changed, file):
    """The key of the cache holds the rooms', so nothing that was measured is found again. Rooms count whole."""
    assert {"rooms", "probe"} <= changed(file)


@pytest.mark.parametrize(
    "file", ["methods/kernels/genetic.py", "methods/kernels/of_nothing.py", "bench/applying/apply.py"]
)
def test_what_nothing_uses_changes_nothing(changed, file):
    assert changed(file) == set()


def test_what_only_shows_is_in_no_digest(tree):
    path = tree / "bench" / "cards" / "model_card.py"
    text = path.read_text()
    before = digests.code_digest.__wrapped__(digests.APPLYING, tree)
    path.write_text(f"{text}# edited\n")
    assert digests.code_digest.__wrapped__(digests.APPLYING, tree) == before
    path.write_text(text)


def test_the_probe_has_a_room_of_its_own(changed):
    assert changed("bench/probing/states.py") == {"probe"}


def test_a_statistic_has_its_own_file_and_kernels(changed):
    own = {"token_logits", "token_gram", "output_cosine", "dense_output_mean"}
    assert changed("methods/stats/sampled.py") == own
    assert changed("methods/kernels/cka.py") == {"output_cka", "weight_cka"}
    assert set(CATALOGUE) < changed("methods/framework/accumulator.py")


def test_a_rule_has_its_own_files(changed):
    assert changed("methods/criterion.py") == {"rule reap", "rule msan"}
    assert changed("methods/naee.py") == {"rule naee"}


def test_imports_are_followed_wherever_they_stand_but_not_those_for_types(tmp_path, monkeypatch):
    package = tmp_path / "brought"
    package.mkdir()
    offers = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from brought.home import offered, unused\noffered = 1\n"
    texts = {
        "__init__": offers,
        "late": "",
        "near": "",
        "typed": "",
        "home": "",
        "rule": "from typing import TYPE_CHECKING\nfrom . import near\nif TYPE_CHECKING:\n    from brought import typed\n"
        "class Rule:\n    def decide(self):\n        from brought import late, offered\n",
    }
    for name, text in texts.items():
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from brought.rule import Rule

    before = digests.decision_digest(Rule)
    for name, text in texts.items():
        (package / f"{name}.py").write_text(f"{text}# edited\n")
        assert (digests.decision_digest(Rule) != before) == (name != "typed"), name
        (package / f"{name}.py").write_text(text)
    assert digests.decision_digest(Rule) == before


def test_a_rule_that_no_file_defines_is_never_found_again():
    kinds: dict[str, type] = {"__name__": "session"}
    exec("class Rule: pass", kinds)
    kinds["Rule"].__module__ = "builtins_of_a_session"
    assert digests.decision_digest(kinds["Rule"]) != digests.decision_digest(kinds["Rule"])
