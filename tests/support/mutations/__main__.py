"""Plants defects in a copy of the tree, one at a time, and tells which of them the tests catch.

Run ``python -m tests.support.mutations --json after.json`` for all, and again to go on where it stopped;
``python -m tests.support.mutations --json after.json --compare before.json`` fails where a defect is caught no longer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tests.support.mutations.defect import DATA, Defect, Unfit, planted, read_defects, site
from tests.support.mutations.trial import Copy, Run, tree_digest, warm

WIDE = {
    "methods": ("tests/methods", "tests/laws"),
    "bench": ("tests/bench", "tests/laws"),
    "sweeps": ("tests/sweeps",),
    "analysis": ("tests/analysis",),
}
"""Where ``--thorough`` looks for a test that catches what its own selections let pass, by package."""
LIMIT, WIDE_LIMIT = 300.0, 1800.0
"""Seconds that a selection of a defect, and one of ``WIDE``, may take until it is taken to hang."""
NOT_SLOW = ("-m", "not e2e")
"""Added to selections without markers of their own."""
CAUGHT = ("caught", "hung")

Result = dict[str, Any]
_copy: Copy  # of this process of the pool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, and return 1 where a defect is caught no longer, 2 where one cannot be judged."""
    options = _options(arguments)
    defects = [one for one in read_defects(options.defects) if not options.only or one.id in options.only]
    unfit = {one.id: reason for one in defects if (reason := _misfit(one, options.tree))}
    if options.list:
        for one in defects:
            print(f"{one.id:34} {one.area:12} {one.kind:26} {one.where}  {unfit.get(one.id, '')}".rstrip())
        return 2 if unfit else 0
    book = _Book(options.json, tree_digest(options.tree))
    todo = [one for one in defects if one.id not in unfit and not book.knows(one)]
    if todo:
        warm()
        with tempfile.TemporaryDirectory(prefix="mut", ignore_cleanup_errors=True) as folder:
            _judge_all(todo, book, options.tree, Path(folder), options.jobs, options.thorough)
    results = {one.id: book.results[one.id] for one in defects if one.id not in unfit}
    results |= {name: {"verdict": "unfit", "tail": reason} for name, reason in unfit.items()}
    _summary(defects, results)
    lost = _lost(json.loads(options.compare.read_text())["results"], results, options.only) if options.compare else []
    for name in lost:
        print(f"LOST    {name}: was caught, is {results.get(name, {'verdict': 'gone'})['verdict']}")
    broken = any(result["verdict"] in ("unfit", "broken") for result in results.values())
    return 1 if lost else 2 if broken else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.mutations", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="this defect; may be given again")
    parser.add_argument("--list", action="store_true", help="list defects, and tell which cannot be planted")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with a copy of the tree")
    parser.add_argument("--json", type=Path, help="results, read first and written after each defect")
    parser.add_argument("--compare", type=Path, help="results of earlier: fail where a defect is caught no longer")
    parser.add_argument("--thorough", action="store_true", help="try what escapes on all fast tests of its package")
    parser.add_argument("--tree", type=Path, default=Path.cwd(), help="root of the tree; the current folder")
    parser.add_argument("--defects", type=Path, default=DATA, help="folder of TOML files; this one")
    options = parser.parse_args(arguments)
    options.tree = options.tree.resolve()
    return options


def _misfit(defect: Defect, tree: Path) -> str | None:
    try:
        site(defect, tree)
    except Unfit as error:
        return str(error)
    missing = [one for one in defect.tests if not (tree / one.split()[0]).exists()]
    return f"there is no {missing[0].split()[0]}" if missing else None


class _Book:
    """What is known, and the file that it is kept in.

    Args of the constructor are the file, if there is one, and the digest of the tree: what is known of another tree is
    not taken for this one.
    """

    def __init__(self, path: Path | None, tree: str) -> None:
        self._path, self._tree = path, tree
        known = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.results: dict[str, Result] = known.get("results", {})

    def knows(self, defect: Defect) -> bool:
        """Return whether the verdict on ``defect`` in this tree is known."""
        result = self.results.get(defect.id, {})
        return (result.get("tree"), result.get("defect")) == (self._tree, defect.digest)

    def note(self, defect: Defect, result: Result) -> None:
        """Keep a verdict."""
        self.results[defect.id] = {**result, "tree": self._tree, "defect": defect.digest}
        self._write()

    def unproved(self) -> list[str]:
        """Return the tests that caught something and were not seen to pass without it."""
        return sorted({one["by"] for one in self.results.values() if self._here(one) and not one.get("proved")})

    def prove(self, failed: Collection[str]) -> None:
        """Take back what was caught by tests that fail without any defect, ``failed``."""
        for result in filter(self._here, self.results.values()):
            result["proved"] = True
            if result["by"] in failed:
                result |= {"verdict": "broken", "tail": f"{result['by']} fails without it"}
        self._write()

    def _here(self, result: Result) -> bool:
        return result["tree"] == self._tree and result["verdict"] == "caught" and bool(result["by"])

    def _write(self) -> None:
        if self._path is not None:
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps({"results": self.results}, indent=1, sort_keys=True))
            os.replace(partial, self._path)


def _judge_all(todo: list[Defect], book: _Book, tree: Path, folder: Path, jobs: int, thorough: bool) -> None:
    """Plant each defect, and run what caught one without any: a test that fails then proves nothing."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=(tree, folder)) as pool:
        futures = {pool.submit(_judge, defect, thorough): defect for defect in todo}
        for future in as_completed(futures):
            defect, result = futures[future], future.result()
            book.note(defect, result)
            print(f"{result['verdict']:8} {result['seconds']:6.1f} s  {defect.id}  {result['by']}", flush=True)
        if tests := book.unproved():
            run = pool.submit(_run_clean, tests).result()
            print(f"{run.state:8} {run.seconds:6.1f} s  {len(tests)} tests without defects", flush=True)
            if run.state in ("hung", "empty"):
                raise RuntimeError(f"the tests cannot be run without defects either: {run.tail}")
            book.prove(run.failed)


def _judge(defect: Defect, thorough: bool) -> Result:
    """Return the verdict on a defect: ``caught``, ``hung``, ``escaped``, or ``broken`` where it cannot be told."""
    seconds = 0.0
    tries = [(selection, LIMIT) for selection in defect.tests]
    tries += [(selection, WIDE_LIMIT) for selection in WIDE[defect.where.partition("/")[0]] if thorough]
    with planted(defect, _copy.tree):
        for selection, limit in tries:
            options = shlex.split(selection)
            run = _copy.run(["-x", *options, *(() if "-m" in options else NOT_SLOW)], limit)
            seconds = round(seconds + run.seconds, 1)
            if run.state != "passed":
                verdict = {"hung": "hung", "empty": "broken"}.get(run.state, "caught")
                by = run.failed[0] if run.failed else ""
                tail = "" if by else f"{selection}\n{run.tail}"
                return {"verdict": verdict, "by": by, "tests": selection, "seconds": seconds, "tail": tail}
    return {"verdict": "escaped", "by": "", "seconds": seconds}


def _begin(tree: Path, folder: Path) -> None:
    """Give this process of the pool a copy of its own."""
    global _copy
    _copy = Copy(tree, Path(tempfile.mkdtemp(dir=folder, prefix="")))


def _run_clean(tests: Sequence[str]) -> Run:
    return _copy.run(tests, WIDE_LIMIT)


def _summary(defects: Sequence[Defect], results: Mapping[str, Result]) -> None:
    """Print counts by area, and everything that was not caught."""
    for area in dict.fromkeys(one.area for one in defects):
        verdicts = [results[one.id]["verdict"] for one in defects if one.area == area]
        print(f"{area:12} {sum(one in CAUGHT for one in verdicts):3} of {len(verdicts)} caught")
    verdicts = [result["verdict"] for result in results.values()]
    hung = f", {verdicts.count('hung')} of them by hanging" if "hung" in verdicts else ""
    print(f"{'all':12} {sum(one in CAUGHT for one in verdicts):3} of {len(verdicts)} caught{hung}")
    for one in defects:
        if (verdict := results[one.id]["verdict"]) not in CAUGHT:
            print(f"{verdict.upper():7} {one.id} ({one.kind}) {results[one.id].get('tail', '')}".rstrip())


def _lost(before: Mapping[str, Result], now: Mapping[str, Result], only: Sequence[str]) -> list[str]:
    """Return what was caught before and is not now."""
    caught = {name for name, result in before.items() if result["verdict"] in CAUGHT and (not only or name in only)}
    return sorted(name for name in caught if now.get(name, {}).get("verdict") not in CAUGHT)


if __name__ == "__main__":
    sys.exit(main())
