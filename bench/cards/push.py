"""A written checkpoint goes to the hub: which files, and what may keep them from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.cards.hub_results import FOLDER
from bench.cards.lineage import CARD
from bench.cards.model_card import card_files, write_card
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.errors import CheckpointError, PublishError

_MESSAGE = "Checkpoint written by moebench"


def files_to_push(folder: Path) -> dict[str, int]:
    """Return the files of a written checkpoint by name with their bytes, sorted; nothing is written.

    Hidden files stay here, but for the results that the hub reads. A folder without a card counts the one that it will get.

    Raises:
        CheckpointError: there is no checkpoint, it does not hold what was written to it, or no plan of ours made it.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}; name one that `moebench apply` or a run wrote")
    made = card_files(folder)
    checkpoint = Checkpoint.open(folder)
    checkpoint.close()
    _ = checkpoint.content  # compares the files with what was written
    paths = [path for path in folder.iterdir() if not path.name.startswith(".")] + list(
        (folder / FOLDER).glob("*.yaml")
    )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}
    sizes.setdefault(CARD, len(made[CARD].encode()))
    return dict(sorted(sizes.items()))


def push(folder: Path, repository: str, *, public: bool = False, update: bool = False) -> str:
    """Upload a written checkpoint and return the address of its commit.

    Args:
        folder: of the checkpoint.
        repository: ``owner/name`` on the hub.
        public: whether a new repository can be seen by all; else by its owner alone.
        update: whether a repository that is there already gets another commit; files that the folder lacks stay there.

    Raises:
        CheckpointError: as for ``files_to_push``.
        PublishError: the name is none, nobody is logged in, the repository exists, or the hub refuses.
    """
    from huggingface_hub import HfApi, get_token

    check_name(repository)
    names = files_to_push(folder)
    if get_token() is None:
        raise PublishError(
            "nobody is logged in to the hub: log in with a token that may write (`hf auth login`, or HF_TOKEN); "
            "`--dry-run` shows the files without one"
        )
    if not (folder / CARD).exists():
        write_card(folder)
    api = HfApi(library_name="moebench")
    with _explained(repository):
        api.create_repo(repository, private=not public, exist_ok=update)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=list(names), commit_message=_MESSAGE
        )
    return str(done.commit_url)


def check_name(repository: str) -> None:
    """Check that ``repository`` is the name of one.

    Raises:
        PublishError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # offered there, but not in __all__

    try:
        validate_repo_id(repository)
        named = repository.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise PublishError(
            f"{repository!r} is no name of a repository; give OWNER/NAME of letters, digits, '-', '_' and '.', such as "
            "my-lab/pocket-mixtral-half"
        )


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn what the hub or the network refuses into an error that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise PublishError("the hub is switched off (HF_HUB_OFFLINE); unset it to push") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise PublishError(_refused(repository, status, str(error))) from error
    except Exception as error:  # the transport below huggingface_hub has errors of its own
        raise PublishError(_again(repository, _first_line(error))) from error


def _refused(repository: str, status: int, told: str) -> str:
    owner = repository.partition("/")[0]
    if status == 409:
        return f"{repository} exists on the hub; choose another name, or add a commit to it with --update"
    if status == 401:
        return "the hub does not know the token; log in again with one that may write (`hf auth login`, or HF_TOKEN)"
    if status in (403, 404):
        return (
            f"the token may not write to {repository}; take one of kind `write`, and a name of yours or of a group that you "
            f"belong to in place of {owner}"
        )
    return _again(repository, told.strip().splitlines()[0] if told.strip() else f"status {status}")


def _again(repository: str, reason: str) -> str:
    return (
        f"pushing to {repository} failed: {reason}; what was uploaded is kept, so try again, with --update where the "
        "repository was made"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
