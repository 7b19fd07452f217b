"""The catalogue of statistics: read without torch, strict about what files and other distributions bring."""

from __future__ import annotations

import subprocess
import sys

import pytest

from methods.framework import catalogue
from methods.framework.accumulator import Accumulator, ModelAccumulator
from methods.framework.catalogue import CATALOGUE, Catalogue
from methods.framework.errors import ConfigError
from methods.framework.stat_spec import StatSpec
from tests.support.distribution import announce


def kind(name, dims=("E",)):
    """Return an accumulator class of a statistic with these axes."""
    spec = StatSpec(name, dims, "moe", "routed", "nothing", "1")
    return type("Found", (Accumulator,), {"specs": (spec,), "__module__": f"file_of_{name}_{''.join(dims)}"})


def test_every_statistic_has_a_class_that_makes_it():
    for name, spec in CATALOGUE.items():
        made = CATALOGUE.kind(name)
        assert spec in made.specs
        assert issubclass(made, ModelAccumulator) == (spec.scope == "model")


def test_definitions_are_read_without_torch():
    """Listings, refusals and slices of statistics cost no import of it, however many files there are."""
    program = (
        "import sys\nfrom methods.framework.stats import CATALOGUE, Stats, by_expert\n"
        "assert len(CATALOGUE) > 30 and CATALOGUE['token_gram'].on_disk\n"
        "assert not {'torch', 'scipy', 'transformers', 'bench'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_two_files_cannot_define_one_statistic(monkeypatch):
    monkeypatch.setattr(catalogue, "_all_kinds", lambda: [kind("loudness"), kind("loudness", ("E", "D"))])
    with pytest.raises(ConfigError, match="'loudness' is defined by file_of_loudness_E and by file_of_loudness_ED"):
        len(Catalogue())


def test_an_axis_that_nothing_knows_is_refused(monkeypatch):
    monkeypatch.setattr(catalogue, "_all_kinds", lambda: [kind("loudness", ("E", "T"))])
    with pytest.raises(ConfigError, match=r"'loudness' has the axes \('E', 'T'\); known: A, B, D"):
        len(Catalogue())


def test_an_entry_point_has_to_give_an_accumulator(tmp_path, monkeypatch):
    (tmp_path / "no_statistic.py").write_text("LOUD = 3\n")
    monkeypatch.syspath_prepend(announce(tmp_path, "moebench.statistics", "loudness", "no_statistic:LOUD"))
    with pytest.raises(ConfigError, match="'loudness' gives 3, which is not an Accumulator"):
        len(Catalogue())
