"""Where a checkpoint comes from: a local folder, or the Hugging Face hub."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from bench.pocket import POCKET_MODELS, pocket_path
from methods.framework.errors import CheckpointError

PATTERNS = (
    "*.json",
    "model*.safetensors",
    "tokenizer*",
    "*.model",
    "merges.txt",
    "vocab.txt",
    "*.jinja",
    "*.py",
    "LICEN[CS]E*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)
"""Files fetched from the hub; weights in other formats, or twice, are left there. The card tells the licence."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def local_folder(source: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Return the folder that holds ``source``, and the hub commit where it came from the hub.

    Args:
        source: path of a folder, a pocket model's name, or a hub id such as ``allenai/OLMoE-1B-7B-0924``.
        revision: hub branch, tag or commit.

    Raises:
        CheckpointError: there is no such folder, and the hub has no such model, refuses it or cannot be reached.
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
    if found is not None and stat.S_ISDIR(found.st_mode):
        return folder, None
    if source in POCKET_MODELS:
        return pocket_path(str(source)), None
    if found is not None:
        raise CheckpointError(f"{source} is a file; name the folder that holds config.json and the safetensors files")
    name = str(source)
    if isinstance(source, Path) or name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {source}; name a folder with config.json, or a hub id (owner/model)")
    fetched = _fetch(name, revision)
    return fetched, fetched.name if fetched.parent.name == "snapshots" else revision


def _fetch(name: str, revision: str | None) -> Path:
    """Return the folder of a hub model, fetching what is not there yet."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(PATTERNS)))
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
    except LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")
        why = "the hub is switched off (HF_HUB_OFFLINE)" if offline else "the hub cannot be reached"
        raise CheckpointError(
            f"{name}{at} is neither a folder nor in the local cache, and {why}; fetch it once where there is a network"
        ) from error
    except Exception as error:  # the transport below huggingface_hub has errors of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"fetching {name}{at} from the hub failed: {first}; what was fetched is kept, try again"
        ) from error
