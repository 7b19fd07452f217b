"""Answers that were given before: in memory, and as files where a folder is named.

A file's name is the digest of the question, with the model, the tokens and the code that answers; so it is never stale. It
holds a checksum of its own arrays, so that one that was damaged since is computed again.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.store.atomic import OTHER_CACHE, write_atomically
from bench.store.store import checksum, digest_of
from methods.framework.errors import StatsError
from methods.framework.stats import Array

Answer = dict[str, Array]
MEMORY_BYTES = 256 << 20
"""Bound on answers in memory; the last one always stays."""
FILE_BYTES = 1 << 20
"""Answers above this size are not written to disk: they are Grams, which cost less to compute than to keep for all layers."""


class Answers:
    """A cache of named arrays by question."""

    def __init__(self, key: Mapping[str, Any], folder: Path | None) -> None:
        """Keep answers to questions about what ``key`` (JSON values) describes, in ``folder`` too if there is one."""
        self._key, self._folder = dict(key), folder
        self._memory: OrderedDict[str, Answer] = OrderedDict()

    def recall(self, question: Mapping[str, Any], compute: Callable[[], Answer]) -> Answer:
        """Return the answer to ``question`` (JSON values), computed where it is not known; do not change its arrays."""
        digest = digest_of({**self._key, "question": question})
        answer = self._memory.get(digest)
        if answer is None:
            answer = self._read(digest)
            if answer is None:
                answer = compute()
                self._write(digest, answer)
            self._memory[digest] = answer
            size = sum(map(_size, self._memory.values()))
            while size > MEMORY_BYTES and len(self._memory) > 1:
                size -= _size(self._memory.popitem(last=False)[1])
        else:
            self._memory.move_to_end(digest)
        return answer

    def _read(self, digest: str) -> Answer | None:
        """Return what the file of ``digest`` holds; a damaged one counts as absent."""
        if self._folder is None:
            return None
        try:
            document = json.loads(self._path(digest).read_text())
            if document["sha256"] != checksum(document["arrays"]):
                return None
            return {
                name: np.array(array["values"], dtype=np.float64).reshape(array["shape"])
                for name, array in document["arrays"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write(self, digest: str, answer: Answer) -> None:
        if self._folder is None or _size(answer) > FILE_BYTES:
            return
        arrays = {
            name: {"shape": list(array.shape), "values": array.ravel().tolist()} for name, array in answer.items()
        }
        document = {"sha256": checksum(arrays), "arrays": arrays}
        write_atomically(self._path(digest), json.dumps(document), StatsError, OTHER_CACHE)

    def _path(self, digest: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{digest[:32]}.json"


def _size(answer: Answer) -> int:
    return sum(array.nbytes for array in answer.values())
