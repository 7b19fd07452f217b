"""What a measurement ran on: processor cores it was bound to, and clocks and driver of a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def allowed_cores() -> tuple[int, ...]:
    """Return the processor cores that this process may run on, nothing where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def bind(cores: tuple[int, ...]) -> None:
    """Bind this process, and all that it starts, to ``cores``; none leaves it as it is."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def choose_cores(count: int, seconds: float = 0.3) -> tuple[int, ...]:
    """Return the least busy cores among those allowed, one thread of each physical core before any second one.

    Args:
        count: cores wanted; where fewer are allowed, all of these are returned.
        seconds: how long the machine is watched.
    """
    import psutil

    allowed = allowed_cores()
    if len(allowed) <= count:
        return allowed
    busy = psutil.cpu_percent(seconds, percpu=True)
    order = sorted(allowed, key=lambda core: (_sibling_rank(core), busy[core] if core < len(busy) else 0.0, -core))
    return tuple(sorted(order[:count]))


def _sibling_rank(core: int) -> int:
    """Return which hardware thread of its physical core ``core`` is."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return 0
    siblings: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        siblings += range(int(first), int(last or first) + 1)
    return siblings.index(core) if core in siblings else 0


def _nvml() -> Any:
    """Return NVIDIA's management library, which vLLM brings along, or None."""
    try:
        import pynvml  # type: ignore[import-not-found]  # there on some GPU machines only

        return pynvml
    except ImportError:
        pass
    try:
        from vllm.third_party import pynvml as bundled
    except ImportError:
        return None
    return bundled


def gpu_state(uuid: str | None = None) -> dict[str, Any]:
    """Return driver, clocks, power and temperature of the GPU at this moment; what it does not tell is left out.

    Args:
        uuid: of the GPU as CUDA names it, None for the first one that the driver lists.

    Returns:
        ``driver``, ``name``, ``sm_clock_mhz``, ``memory_clock_mhz``, ``max_sm_clock_mhz``, ``power_limit_w``,
        ``temperature_c``, ``throttle_reasons`` (NVML's bit mask); nothing without driver or library.
    """
    nvml = _nvml()
    if nvml is None:
        return {}
    try:
        nvml.nvmlInit()
        wanted = f"GPU-{uuid.removeprefix('GPU-')}" if uuid else None
        handle = nvml.nvmlDeviceGetHandleByUUID(wanted) if wanted else nvml.nvmlDeviceGetHandleByIndex(0)
    except nvml.NVMLError:
        return {}
    questions: dict[str, Callable[[], Any]] = {
        "driver": nvml.nvmlSystemGetDriverVersion,
        "name": lambda: nvml.nvmlDeviceGetName(handle),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
    state: dict[str, Any] = {}
    for name, ask in questions.items():
        try:
            value = ask()
        except nvml.NVMLError:
            continue
        state[name] = value.decode() if isinstance(value, bytes) else value
    return state
