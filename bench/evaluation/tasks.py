"""Tasks of lm-eval: found by name, loaded once in a process, and identified by content."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from bench.evaluation.chat import Chat
from bench.evaluation.generation import Generation
from bench.evaluation.quiet import quiet_lm_eval
from methods.framework.errors import EvaluationError, UnknownNameError

# Where the data lie on this machine, and how examples are chosen: the chosen examples and items are in the digest.
_PLACES = ("dataset_path", "dataset_name", "dataset_kwargs", "custom_dataset", "fewshot_config", "metadata")

Signature = tuple[tuple[str, int, int], ...]


@dataclass
class LoadedTask:
    """One leaf task with its requests built."""

    name: str
    task: Any  # lm_eval.api.task.Task
    limit: int | None
    digest: str
    data: Signature

    def fresh(self) -> Any:
        """Return the task with its built requests and no answers."""
        for instance in self.task.instances:
            instance.resps, instance.filtered_resps = [], {}
        return self.task


def _signature(paths: Sequence[Path]) -> Signature:
    """Return name, size and time of the files, so that a file changed while the process runs is read again."""
    files = [path for path in paths if path.is_file()]
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(files))


def _folder_signature(include_path: Path | None) -> Signature:
    return _signature(
        [path for path in include_path.rglob("*") if path.suffix in (".yaml", ".py")] if include_path else []
    )


@lru_cache(maxsize=8)
def _manager(include_path: Path | None, defaults: bool, signature: Signature) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(include_path) if include_path else None, include_defaults=defaults)


def task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """Return a task manager that knows all ``tasks``; the built-in index (10 s) is read only where it is needed.

    Raises:
        EvaluationError: ``include_path`` is no folder, or a name is unknown.
    """
    if include_path is not None and not include_path.is_dir():
        raise EvaluationError(f"--include-path {include_path} is not a folder; give the folder of the task YAML files")
    if not tasks:
        raise EvaluationError("no evaluation task was given; name at least one")
    include_path = include_path.resolve() if include_path else None
    signature = _folder_signature(include_path)
    if include_path:
        local = _manager(include_path, False, signature)
        if all(name in local.task_index for name in tasks):
            return local
    manager = _manager(include_path, True, signature)
    for name in tasks:
        if name not in manager.task_index:
            try:
                raise UnknownNameError("evaluation task", name, manager.task_index, "Local tasks need --include-path.")
            except UnknownNameError as error:
                raise EvaluationError(str(error)) from None
    return manager


def check_tasks(tasks: Sequence[str], include_path: Path | None = None) -> None:
    """Check that lm-eval knows every name, before any model work.

    Raises:
        EvaluationError: a name is unknown; the closest match is named.
    """
    task_manager(tasks, include_path)


_LOADED: dict[tuple[Any, ...], tuple[dict[str, LoadedTask], dict[str, Any]]] = {}


def load_tasks(
    tasks: Sequence[str],
    include_path: Path | None,
    *,
    num_fewshot: int | None,
    limit: int | None,
    seed: int,
    chat: Chat | None = None,
    generation: Generation | None = None,
) -> tuple[dict[str, LoadedTask], dict[str, Any]]:
    """Return the leaf tasks in order, and the groups among ``tasks``, loaded at most once in this process.

    Args:
        tasks: names of tasks, groups or tags.
        include_path: folder of local tasks.
        num_fewshot: examples in the prompt, None for each task's own number.
        limit: first items of each task, None for all.
        seed: seed of the choice of examples.
        chat: how prompts become conversations; None asks them as they are.
        generation: how texts are generated; None: as each task says.

    Raises:
        EvaluationError: unknown name, a chat template that is missing or refuses, the data of a task cannot be loaded, or
            settings of generation where no task generates.
    """
    manager = task_manager(tasks, include_path)
    leaves: dict[str, LoadedTask] = {}
    groups: dict[str, Any] = {}
    spoken = (None if chat is None else chat.key, repr(generation))
    for name in tasks:
        entry = manager.task_index[name]
        key = (name, str(entry.yaml_path), _folder_signature(include_path), num_fewshot, limit, seed, spoken)
        known = _LOADED.get(key)
        if known is None or any(one.data != _data_signature(one.task) for one in known[0].values()):
            known = _LOADED[key] = _load(manager, name, num_fewshot, limit, seed, chat, generation)
        leaves |= known[0]
        groups |= known[1]
    if generation is not None and all(leaf.task.OUTPUT_TYPE != "generate_until" for leaf in leaves.values()):
        raise EvaluationError(
            f"none of the tasks {', '.join(tasks)} generates a text, so that settings of generation would change nothing; leave "
            "--generation, --shipped-generation and --stop out"
        )
    return leaves, groups


def _load(
    manager: Any,
    name: str,
    num_fewshot: int | None,
    limit: int | None,
    seed: int,
    chat: Chat | None,
    generation: Generation | None,
) -> tuple[dict[str, LoadedTask], dict[str, Any]]:
    try:
        with quiet_lm_eval():
            return _build(manager.load([name]), num_fewshot, limit, seed, chat, generation)
    except EvaluationError:
        raise
    except Exception as error:  # lm-eval, datasets and task code raise anything
        told = " ".join(str(error).split())[:300]
        raise EvaluationError(
            f"task {name!r} cannot be loaded: {type(error).__name__}: {told}. Its data must be on this machine when "
            "the hub is offline: download them once with the hub online, or give a local task with --include-path."
        ) from error


def _build(
    loaded: dict[str, Any],
    num_fewshot: int | None,
    limit: int | None,
    seed: int,
    chat: Chat | None,
    generation: Generation | None,
) -> tuple[dict[str, LoadedTask], dict[str, Any]]:
    from lm_eval.evaluator_utils import get_sample_size

    leaves = {}
    for leaf, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        # As in lm-eval: a task that fixes zero examples keeps it.
        if own is None or (num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=seed)
        if generation is not None and task.OUTPUT_TYPE == "generate_until":
            own = task.get_config("generation_kwargs") or {}
            task.set_config(key="generation_kwargs", value=generation.over(own))
        first = get_sample_size(task, limit)
        if chat is None:
            task.build_all_requests(limit=first)
        else:
            if chat.thinking and task.OUTPUT_TYPE != "generate_until":
                raise EvaluationError(
                    f"task {leaf!r} scores given answers, before which no model thinks; disable thinking"
                )
            task.build_all_requests(
                limit=first,
                system_instruction=chat.system,
                apply_chat_template=True,
                fewshot_as_multiturn=chat.turns,
                chat_template=chat.render,
            )
        # The evaluator builds the requests of every task again for every model; they are the same, so they are kept.
        task.build_all_requests = lambda **_: None
        task.doc_iterator = partial(_known_docs, {instance.doc_id: instance.doc for instance in task.instances})
        leaves[leaf] = LoadedTask(leaf, task, first, _task_digest(task, limit, seed), _data_signature(task))
    return leaves, loaded.get("groups", {})


def _known_docs(docs: Mapping[int, Any], **_: Any) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each document that is asked about, without reading the data once more for each model.

    A task's code may change what it is given, so it gets a copy.
    """
    for number, doc in docs.items():
        yield number, dict(doc) if isinstance(doc, dict) else doc


def _data_signature(task: Any) -> Signature:
    files = (task.get_config("dataset_kwargs") or {}).get("data_files") or {}
    values = files.values() if isinstance(files, dict) else [files]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    return _signature([Path(name) for name in names])


def _source(value: Any) -> Any:
    """Return a function as its source text, so that a digest holds no memory address; anything else as text."""
    if isinstance(value, partial):
        return [
            _source(value.func),
            [repr(one) for one in value.args],
            sorted((k, repr(v)) for k, v in value.keywords.items()),
        ]
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return str(value)


def _task_digest(task: Any, limit: int | None, seed: int) -> str:
    """Return the digest of definition, code, items and requests: all that a model is asked and how it counts."""
    import lm_eval

    config = {key: value for key, value in vars(task.config).items() if key not in _PLACES and value is not None}
    content = hashlib.sha256()

    def add(value: Any) -> None:
        content.update(json.dumps(value, sort_keys=True, default=_source, ensure_ascii=False).encode())

    add([lm_eval.__version__, str(task.VERSION), type(task).__qualname__, config, limit, seed])
    for instance in task.instances:
        add([instance.doc, instance.arguments, instance.request_type, instance.repeats])
    return content.hexdigest()
