"""One process that has vLLM imported, for all end-to-end tests: importing it costs more than serving ten models."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.serving.processes.client import Zygote
from bench.serving.vllm_engine import VLLM
from bench.settings.timing_settings import TimingProtocol
from bench.timing.offline import TimingSession


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TimingSession]:
    protocol = TimingProtocol(batch=(4, 1), prompt=32, generate=8, dtype="float32", threads=1, kv_cache_bytes=1 << 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VLLM, "worker", "tests.support.serving_worker")
        with TimingSession(protocol, logs=tmp_path_factory.mktemp("logs")) as opened:
            yield opened


@pytest.fixture(scope="session")
def zygote(session: TimingSession) -> Zygote:
    assert session._zygote is not None
    return session._zygote
