"""Scoped changes to lm-eval's surroundings: no bars, no chatter, and templates compiled once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def quiet_lm_eval() -> Iterator[None]:
    """Run lm-eval without progress bars and notices, and compile each of its Jinja templates once.

    lm-eval offers no setting for its bars, and compiles the template of a field anew for every item, which takes half
    of the time of evaluating a small model.
    """
    import lm_eval.utils
    from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no stubs

    start, templates = tqdm.__init__, lm_eval.utils.env
    logger = logging.getLogger("lm_eval")
    level = logger.level

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "disable": True})

    tqdm.__init__ = silent
    templates.from_string = lru_cache(maxsize=1024)(templates.from_string)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        tqdm.__init__ = start
        del templates.from_string  # uncovers the class's own method
        logger.setLevel(level)
