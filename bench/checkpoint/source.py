"""Where a checkpoint comes from: a local folder, or the Hugging Face hub."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

from bench.checkpoint.hub import HubModel
from bench.checkpoint.weight_files import weight_files
from bench.pocket import POCKET_MODELS, pocket_path
from methods.framework.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_REVISION = re.compile(r"[\w][\w./-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """What a name stands for.

    Args:
        name: the model's own: the name of the folder, or the hub id without its revision.
        folder: with the files beside the weights, and those weights that are here already.
        hub: where further files come from; None for a folder of the user's own.
    """

    name: str
    folder: Path
    hub: HubModel | None = None

    @property
    def commit(self) -> str | None:
        """The hub commit, where it comes from the hub."""
        return None if self.hub is None else self.hub.commit

    def complete(self) -> Path:
        """Fetch the weights that are still on the hub, and return the folder.

        Raises:
            CheckpointError: the hub does not give them.
        """
        if self.hub is not None:
            self.hub.fetch(weight_files(self.folder))
        return self.folder


def at_revision(source: str, revision: str | None) -> str:
    """Return ``source`` with ``revision`` in its name, as ``OWNER/MODEL@REVISION``.

    Raises:
        CheckpointError: it states another one already.
    """
    if revision is None:
        return source
    if "@" in source and not Path(source).exists():
        raise CheckpointError(f"{source} states a revision, and so does --revision {revision}; give one of them")
    return f"{source}@{revision}"


def found_source(source: str | Path, revision: str | None = None) -> Source:
    """Return what ``source`` stands for, with the files beside the weights; no weight is fetched.

    Args:
        source: path of a folder, a pocket model's name, or a hub id such as ``allenai/OLMoE-1B-7B-0924``, maybe with its
            revision behind an ``@``.
        revision: hub branch, tag or commit.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such model, refuses it or cannot be reached; or a
            revision of what is not on the hub.
    """
    folder = Path(source)
    try:
        found = folder.stat()
    except FileNotFoundError:
        found = None
    except (
        OSError,
        ValueError,
    ) as error:  # a name too long, a null byte, a file where a folder is named, no permission
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot look at {str(source)[:200]!r}: {reason}; name a folder or a hub id") from error
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise CheckpointError(f"{source} is a file; name the folder that holds config.json and the safetensors files")
    name, marked, stated = str(source).partition("@") if found is None else (str(source), "", "")
    here = folder if found is not None else pocket_path(name) if name in POCKET_MODELS else None
    if marked and revision is not None:
        raise CheckpointError(f"{source} states a revision, and so does --revision {revision}; give one of them")
    wanted = stated if marked else revision
    if here is not None:
        if wanted is not None:
            raise CheckpointError(f"{name} lies on this machine and has no revision {wanted}; leave the revision out")
        return Source(here.resolve().name, here)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {source}; name a folder with config.json, or a hub id (owner/model)")
    if wanted is not None and not _REVISION.fullmatch(wanted):
        raise CheckpointError(f"{wanted!r} is no revision of {name}; name a branch, a tag or a commit")
    hub = HubModel.found(name, wanted)
    return Source(name, hub.folder, hub)


def local_folder(source: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the folder that holds ``source`` with all of its weights, and the hub commit where it came from the hub.

    Args:
        source: as for ``found_source``.
        revision: hub branch, tag or commit.

    Raises:
        CheckpointError: as for ``found_source``, or the hub does not give the weights.
    """
    found = found_source(source, revision)
    return found.complete(), found.commit
