"""The stages of a run as functions: each is cached by content, so that a run that stopped goes on where it was."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.applying.apply import apply
from bench.applying.computed_by import computed_by
from bench.applying.written_moments import cold_experts, moments_digest
from bench.calibration.code_digest import TIMING, code_digest
from bench.calibration.passing_stats import PassingStats
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import stated_moments
from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.evaluation.chat import Chat
from bench.evaluation.evaluate import Evaluation, evaluate
from bench.evaluation.generation import Generation, generation_of, shipped_with
from bench.models.device import resolved_device
from bench.records.environment import device_name
from bench.records.record import EvaluationInfo, Timing
from bench.settings.named_values import read_values
from bench.settings.recovery import RecoverySettings
from bench.settings.stage_settings import EvaluationConfig
from bench.settings.timing_settings import TimingConfig
from bench.store.store import Store, digest_of
from bench.store.versions import versions
from bench.timing.offline import TimingSession
from methods.framework.plan import Plan
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.recovery.recover import Recovered


@dataclass
class Clock:
    """CPU seconds of this process by stage; a stage that was cached costs next to nothing, and shows it."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the CPU seconds of the block to stage ``name``."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.process_time() - start, 3)


def write_checkpoint(
    checkpoint: Checkpoint,
    plan: Plan,
    store: Store,
    provenance: dict[str, Any],
    stats: Stats | None = None,
    device: str = "cpu",
) -> Path:
    """Write (or find) the compressed checkpoint of ``plan``.

    Its name is made of content, plan, written statistics and, where values are computed, of what computes them. Statistics
    that are measured while it is written stand in the name by what they are measured on.

    Args:
        checkpoint: the source.
        plan: what becomes of each of its layers.
        store: gets the checkpoint.
        provenance: where the plan comes from, stated in the checkpoint.
        stats: statistics that written values depend on; None where the plan needs none.
        device: where tensors are computed that are not copied.
    """
    name = f"{checkpoint.content[:12]}-{plan.digest[:12]}"
    passing = isinstance(stats, PassingStats) and bool(plan.moments)
    measured = None if passing else moments_digest(plan, checkpoint.inventory, stats)
    if isinstance(stats, PassingStats) and passing:
        name += f"-{stats.identity[:12]}"
    elif measured is not None:
        name += f"-{measured[:12]}"
    if (maker := computed_by(plan, device)) is not None:
        name += f"-{digest_of(maker)[:12]}"
    out = store.checkpoints / name
    if passing and out.exists():
        measured = stated_moments(out)
    return apply(checkpoint, plan, out, provenance, moments=stats, device=device, measured=measured)


def count_cold(plan: Plan, checkpoint: Checkpoint, stats: Stats | None, store: Store) -> int | None:
    """Return how many experts are made of moments that saw no token, None where none is made of moments.

    Args:
        plan: what became of each layer.
        checkpoint: the source.
        stats: statistics that the result was written from.
        store: keeps the count of a pass, which may not be taken again only to count.
    """
    if not plan.moments:
        return None
    if not isinstance(stats, PassingStats):
        return cold_experts(plan, checkpoint.inventory, stats)
    key = {"plan": plan.digest, "measured": stats.identity}
    if found := store.recall("cold", key):
        return int(found["experts"])
    stats.layers.finish()
    count = cold_experts(plan, checkpoint.inventory, stats)
    store.remember("cold", key, {"experts": count})
    return count


def recover_checkpoint(
    path: Path,
    settings: RecoverySettings,
    teacher: Path,
    store: Store,
    progress: Callable[[int, int, float], None] | None = None,
    trust_remote_code: bool = False,
) -> Recovered:
    """Train the checkpoint in ``path``, or find what the same training gave before.

    Args:
        path: folder of the compressed checkpoint.
        settings: of the training.
        teacher: folder of the uncompressed model; read where the training learns from it.
        store: keeps what was trained.
        progress: told the steps done and to do, and the loss.
        trust_remote_code: whether the tokenizer may run Python code that lies in ``path``.
    """
    from bench.recovery.recover import recover

    needed = teacher if settings.needs_teacher else None
    return recover(
        path,
        settings,
        teacher=needed,
        store_folder=store.root,
        progress=progress,
        trust_remote_code=trust_remote_code,
    )


def evaluate_checkpoint(
    path: Path,
    content: str,
    config: EvaluationConfig,
    store: Store,
    progress: Any = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Score the checkpoint in ``path`` on the configured tasks.

    Args:
        path: folder of the checkpoint.
        content: digest of everything about it that can change an answer.
        config: tasks and how they are scored.
        store: keeps finished tasks.
        progress: called with task, requests done and requests in all.
        trust_remote_code: whether the tokenizer may run Python code that lies in ``path``.
    """
    import torch

    from bench.models.load import load_model, load_tokenizer

    model = load_model(path, dtype=getattr(torch, config.dtype)).to(resolved_device(config.device))
    tokenizer = load_tokenizer(path, trust_remote_code)
    return evaluate(
        model,
        tokenizer,
        config.tasks,
        include_path=config.include_path,
        limit=config.limit,
        batch_size=config.batch_size,
        num_fewshot=config.num_fewshot,
        seed=config.seed,
        model_digest=content,
        cache=store.cache / "scores",
        max_length=config.max_length,
        chat=chat_of(config, lambda: tokenizer),
        generation=generation_of(config, path),
        think_end_token=config.think_end_token,
        progress=progress,
    )


def chat_of(config: EvaluationConfig, tokenizer: Callable[[], Any]) -> Chat | None:
    """Return how prompts become conversations, None where they are asked as they are; ``tokenizer`` loads that of the model."""
    if not config.apply_chat_template:
        return None
    arguments = read_values(config.template_arguments)
    return Chat(tokenizer(), config.system_instruction, config.fewshot_as_multiturn, config.enable_thinking, arguments)


def evaluation_info(config: EvaluationConfig, checkpoint: Checkpoint) -> EvaluationInfo:
    """Return how a checkpoint, and what is made of it, is asked and answers, for the record.

    Raises:
        EvaluationError: its template or its settings of generation do not fit.
    """
    chat = chat_of(config, lambda: open_tokenizer(checkpoint.path, checkpoint.trust_remote_code))
    generation = generation_of(config, checkpoint.path) or Generation()
    asked = {"dtype", "limit", "num_fewshot", "max_length", "system_instruction", "fewshot_as_multiturn"}
    return EvaluationInfo(
        **config.model_dump(include=asked),
        chat_template=None if chat is None else hashlib.sha256(chat.template.encode()).hexdigest(),
        template_arguments={} if chat is None else chat.told,
        generation_config=shipped_with(checkpoint.path),
        generation=dict(generation.values),
        stop=config.stop,
        think_end_token=config.think_end_token,
    )


def time_checkpoint(
    session: TimingSession, base: Path, compressed: Path, key: dict[str, Any], store: Store
) -> tuple[Timing, Timing]:
    """Time ``compressed`` against ``base``, or recall the timing of the same contents under the same protocol.

    Args:
        session: takes the times; entered already.
        base: folder of the uncompressed checkpoint.
        compressed: folder of the other one.
        key: what the timing depends on; see ``timing_key``.
        store: keeps it, unless it could not be taken.

    Returns:
        The timings of both, the base's first.
    """
    if found := store.recall("timing", key):
        return Timing(**found["base"]), Timing(**found["own"])
    own_base, own = session.time(base, compressed)
    if own.reason is None:
        value = {"base": own_base.model_dump(mode="json"), "own": own.model_dump(mode="json")}
        store.remember("timing", key, value)
    return own_base, own


def timing_key(base: str, own: str, config: TimingConfig, engine: Sequence[str]) -> dict[str, Any]:
    """Return what a timing depends on: both contents, the protocol, the engine and the device.

    Args:
        base: digest of the original's content.
        own: digest of the compressed model's content.
        config: what the timing does.
        engine: distributions that the engine may be installed as.
    """
    return {
        "base": base,
        "own": own,
        "protocol": config.model_dump(mode="json"),
        **timing_conditions(engine),
    }


def timing_conditions(engine: Sequence[str]) -> dict[str, Any]:
    """Return what every timing here depends on: libraries and ``engine`` (its distributions), our code, and the device."""
    import torch

    return {
        "versions": versions(*engine),
        "code": code_digest(TIMING),
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }
