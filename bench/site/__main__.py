"""Lay out the source of the documentation's site: ``python -m bench.site FOLDER``; ``make docs`` then builds it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from bench.site.committed_results import CommittedResults
from bench.site.method_page import method_page, methods_index
from bench.site.navigation import lay_out_navigation
from bench.site.reference import command_page, library_page
from bench.site.site_source import stage
from methods.registry import BUILT_IN, method_class

ROOT = Path(__file__).parents[2]


def lay_out(root: Path, out: Path) -> None:
    """Write the source of the site to ``out``, in place of what was there.

    Raises:
        ConfigError: a table of results is missing, or a page leaves out a method.
    """
    shutil.rmtree(out, ignore_errors=True)
    stage(root, out)
    results = CommittedResults(root / "docs" / "results")
    classes = {name: method_class(name) for name in BUILT_IN}
    for name, cls in classes.items():
        (out / "methods" / f"{name}.md").write_text(method_page(cls, results), encoding="utf-8")
    index = out / "methods" / "index.md"
    index.write_text(methods_index(classes, index.read_text(encoding="utf-8")), encoding="utf-8")
    (out / "command-reference.md").write_text(command_page(), encoding="utf-8")
    (out / "library-reference.md").write_text(library_page(), encoding="utf-8")
    lay_out_navigation(out)


if __name__ == "__main__":
    lay_out(ROOT, Path(sys.argv[1]))
