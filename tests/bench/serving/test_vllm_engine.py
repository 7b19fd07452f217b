"""Whether what is served is what is stored: options of vLLM, the mark of a timing, and times that are not claimed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.served import write
from bench.serving.engine import engine_named
from bench.serving.vllm_engine import DEQUANTISED
from bench.settings.timing_settings import TimingProtocol
from bench.timing.offline import TimingSession
from tests.support.tiny import tiny_checkpoint

CPU, GPU = engine_named("vllm-cpu"), engine_named("vllm-gpu")
# kind: realisation on a CPU, on a GPU, whether experts need a module of their own, architecture that a CPU is told
EXPECTED: dict[str, tuple[str, str, bool, str | None]] = {
    "base": ("compressed", "compressed", False, None),
    "counts": ("compressed", "compressed", False, None),
    "channels": ("compressed", "compressed", True, None),
    "shared_base": ("compressed", "compressed", True, None),
    "packed4": ("dense", "compressed", False, "MoebenchOlmoeForCausalLM"),
    "packed_counts": ("dense", "compressed", False, None),
    "packed_channels": ("dense", "dense", True, None),
    "sparse24": ("dense", "dense", False, None),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    source = Checkpoint.open(tiny_checkpoint("olmoe", folder / "source"))
    return {kind: write(source, kind, folder / kind) for kind in EXPECTED}


@pytest.mark.parametrize("kind", EXPECTED)
def test_realisation_and_options(kind: str, written: dict[str, Path]) -> None:
    cpu, gpu, own, told = EXPECTED[kind]
    path = written[kind]
    assert CPU.realisation(path) == cpu and GPU.realisation(path) == gpu
    assert (CPU.untimed(path) == DEQUANTISED) == kind.startswith("packed")
    options = CPU.options(path, "float32")
    assert options["enforce_eager"] is True
    assert options.get("hf_overrides") == (None if told is None else {"architectures": [told]})
    assert GPU.options(path, "float32") == ({"enforce_eager": True} if own else {})
    command = CPU.server_command(path, [])
    assert ("--hf-overrides" in command) == (told is not None)
    if told is not None:
        assert json.loads(command[command.index("--hf-overrides") + 1]) == {"architectures": [told]}


def test_a_sparse_source_is_remembered(written: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copytree(written["base"], tmp_path / "further")
    document = json.loads((path / "plan.json").read_text())
    document["provenance"]["before"] = json.loads((written["sparse24"] / "plan.json").read_text())
    (path / "plan.json").write_text(json.dumps(document))
    assert GPU.realisation(path) == "dense"
    (path / "plan.json").unlink()
    assert GPU.realisation(path) == "compressed"


def test_what_others_quantised_is_left_to_vllm(written: dict[str, Path], tmp_path: Path) -> None:
    """Attention in 8 bits, which vLLM's CPU build serves by itself, is not ours to override."""
    path = shutil.copytree(written["base"], tmp_path / "other")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (path / "config.json").write_text(json.dumps(config))
    assert CPU.options(path, "float32") == {"enforce_eager": True}
    assert CPU.realisation(path) == "compressed"


class Steady:
    """A worker that is equally fast for every model, and remembers whether it was asked."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def open(self, name: str) -> Steady:
        self.started.append(name)
        return self

    def ask(self, verb: str, timeout: float, **arguments: Any) -> Any:
        if verb == "load":
            return {"platform": "fake"}
        times = dict.fromkeys(("prefill", "decode", "prefill_cpu", "decode_cpu"), 1.0)
        return {"peak": 1, "measure": times, "greedy": [[1]], "log_probabilities": [[0.0]]}[verb]

    def close(self) -> None:
        pass


def test_times_of_values_are_not_claimed(
    written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    workers = Steady()
    protocol = TimingProtocol(prompt=8, generate=2)
    with TimingSession(protocol, logs=tmp_path, open_worker=workers.open) as session:
        base, packed = session.time(written["base"], written["packed4"])
        assert packed.reason == DEQUANTISED and packed.realisation == "dense"
        assert packed.decode_ratio is None and packed.peak_bytes is None and packed.parameter_bytes is None
        assert base.decode is not None and base.realisation is None and "packed4" not in workers.started
        _, sparse = session.time(written["base"], written["sparse24"])
        assert sparse.reason is None and sparse.decode_ratio is not None and sparse.realisation == "dense"
        _, pruned = session.time(written["base"], written["channels"])
        assert pruned.decode_ratio is not None and pruned.realisation == "compressed"
        assert session.answers(written["packed4"], [[1, 2]], 1) == ([[1]], [[0.0]]), "its quality can be asked for"
        alone = session.alone(written["packed4"])
        assert alone.reason == DEQUANTISED and alone.realisation == "dense"
