"""Models of the Hugging Face hub: the commit that a name means, and of its files those alone that are asked for.

Small files come first, so that a model which no family reads costs nothing. Headers of weights are read by ranges of bytes
and remembered beside other caches; weights are fetched when they are needed, by huggingface_hub, which resumes.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from bench.store.atomic import atomic_file
from methods.framework.errors import CheckpointError

SMALL = (
    "*.json",
    "tokenizer*",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
    "*.py",
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)
"""Files that lie beside the weights: what a model is, its tokenizer, its card, which tells the licence."""
_FIRST = 64 << 10
"""Bytes of the first request for a header; most headers are shorter."""
_AT_ONCE = 8
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class HubModel:
    """A commit of a model on the hub.

    Args:
        name: owner and model.
        commit: 40 hexadecimal digits.
        folder: where files of this commit lie on this machine, as far as they were fetched.
    """

    name: str
    commit: str
    folder: Path

    @classmethod
    def found(cls, name: str, revision: str | None) -> HubModel:
        """Return the model called ``name``, with the files beside its weights.

        Raises:
            CheckpointError: the hub has no such model or revision, refuses it, or cannot be reached.
        """
        folder = _snapshot(name, revision, SMALL)
        return cls(name, folder.name, folder)

    def fetch(self, files: Iterable[str]) -> None:
        """Fetch those of ``files`` that are not here yet; what an earlier attempt left unfinished is gone on with.

        Raises:
            CheckpointError: the hub has no such file, or does not give it.
        """
        wanted = sorted({file for file in files if not (self.folder / file).exists()})
        if wanted:
            _snapshot(self.name, self.commit, tuple(map(glob.escape, wanted)), begun=True)
        if missing := [file for file in wanted if not (self.folder / file).exists()]:
            raise CheckpointError(
                f"the hub's {self.name} has no file {missing[0]} at {self.commit[:12]}, which its index names "
                f"({len(missing)} in all); take another revision"
            )

    def headers(self, files: Iterable[str]) -> dict[str, tuple[int, bytes] | None]:
        """Return for each safetensors file its size and the text of its header; None where the hub has no such file.

        Raises:
            CheckpointError: a file is no safetensors file, or the hub does not give it.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return dict(zip(files, pool.map(self._header, files), strict=True))

    def _header(self, file: str) -> tuple[int, bytes] | None:
        memo = _memo_folder() / blake3(f"{self.name}\n{self.commit}\n{file}".encode()).hexdigest(length=16)
        try:
            known = memo.read_bytes()
            return int.from_bytes(known[:8], "little"), known[8:]
        except OSError:
            pass
        first = self._part(file, 0, _FIRST)
        if first is None:
            return None
        size, start = first
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise CheckpointError(
                f"{file} of the hub's {self.name} is no safetensors file: it has {size} bytes and a header of {length}; "
                "take another revision"
            )
        text = start[8 : 8 + length]
        if len(text) < length:
            rest = self._part(file, 8 + len(text), 8 + length)
            text += rest[1] if rest is not None else b""
        if len(text) < length:
            raise CheckpointError(f"the header of {file} of the hub's {self.name} was cut on the way; try again")
        _remember(memo, size.to_bytes(8, "little") + text)
        return size, text

    def _part(self, file: str, start: int, stop: int) -> tuple[int, bytes] | None:
        """Return the size of a file and its bytes from ``start`` to ``stop``, as far as it has them; None: no such file."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented there, without __all__
            build_hf_headers,
            hf_raise_for_status,
            http_stream_backoff,
        )

        url = hf_hub_url(self.name, file, revision=self.commit)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
        with _asking(self.name, self.commit, begun=True), http_stream_backoff("GET", url, headers=headers) as answer:
            try:
                hf_raise_for_status(answer)
            except RemoteEntryNotFoundError:
                return None
            partial = answer.status_code == 206
            told = answer.headers.get("content-range", "").rpartition("/")[2] if partial else None
            size = int(told or answer.headers.get("content-length") or 0)
            skipped, found = (0 if partial else start), bytearray()
            for chunk in answer.iter_bytes():  # a server that knows no ranges sends all; the rest is left there
                found += chunk
                if len(found) >= skipped + stop - start:
                    break
            return size, bytes(found[skipped : skipped + stop - start])


def _snapshot(name: str, revision: str | None, patterns: tuple[str, ...], begun: bool = False) -> Path:
    """Return the folder of a hub model's commit, with all of its files that fit a pattern; of ``begun`` some are here."""
    from huggingface_hub import snapshot_download

    with _asking(name, revision, begun):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


@contextmanager
def _asking(name: str, revision: str | None, begun: bool) -> Iterator[None]:
    """Turn whatever goes wrong with the hub into one error that says what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except CheckpointError:
        raise
    except GatedRepoError as error:
        remedy = f"accept its licence on https://huggingface.co/{name} and log in (`hf auth login`)"
        raise CheckpointError(f"the hub refuses {name}{at}: access is gated; {remedy}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name} has no revision {revision}; see its branches and tags on the hub") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the hub has no model {name}, or it is private, and there is no such folder; check the name, or log in "
            "(`hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")
        why = "the hub is switched off (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached"
        part = begun or isinstance(error, IncompleteSnapshotError)
        there = "is in the local cache in part only" if part else "is neither a folder nor in the local cache"
        raise CheckpointError(f"{name}{at} {there}, and {why}; fetch it once where there is a network") from error
    except Exception as error:  # the transport below huggingface_hub has errors of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"fetching {name}{at} from the hub failed: {first}; what was fetched is kept, try again"
        ) from error


def _memo_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebench" / "headers"


def _remember(memo: Path, content: bytes) -> None:
    """Keep a header; a cache that cannot be written is no error, the hub is asked again next time."""
    try:
        with atomic_file(memo, durable=False) as file:
            file.write(content)
    except OSError:
        return
