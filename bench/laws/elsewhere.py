"""The law of purity across processes: another process, where strings hash otherwise, decides the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from bench.laws.cases import Case
from bench.laws.decisions import case_for, decide, planned, tried
from methods.framework.method import Method

_CODE = f"import sys; from {__name__} import answer; answer(sys.argv[1], sys.argv[2:])"


def purity_across_processes(cls: type[Method], case: Case) -> None:
    """Another process, with another hash seed, finds the same digest."""
    same_elsewhere([cls], case.family)


def same_elsewhere(classes: Sequence[type[Method]], family: str) -> None:
    """Check all ``classes`` in one process: it takes as long to start as to decide."""
    here = [planned(cls, case_for(cls, family)).digest for cls in classes]
    others = [
        cls.name for cls, one, other in zip(classes, here, _digests(classes, family), strict=True) if one != other
    ]
    assert not others, f"another process decides otherwise: {', '.join(others)}"


def _digests(classes: Sequence[type[Method]], family: str) -> list[str]:
    """Return the digests that another process finds."""
    places = [f"{cls.__module__}:{cls.__qualname__}" for cls in classes]
    seed = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", _CODE, family, *places], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, f"another process fails: {run.stderr}"
    return run.stdout.split()[-len(places) :]


def answer(family: str, places: Sequence[str]) -> None:
    """Print the digest of the plan of each method in ``places``, each ``module:class``."""
    for place in places:
        cls: type[Method] = resolve_name(place)
        print(decide(tried(cls), case_for(cls, family)).digest, flush=True)
