"""``moebench serve`` becomes the server of a checkpoint, with the options that it needs, or says why it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.serving.engine import engine_here, engine_named
from bench.serving.serve import serve
from methods.framework.errors import CheckpointError, TimingError
from tests.support.tiny import tiny_checkpoint

CPU, GPU = engine_named("vllm-cpu"), engine_named("vllm-gpu")


def test_the_server_gets_the_options_that_a_checkpoint_needs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kv_lora_rank": 512, "dtype": "float32"}))
    command = CPU.server_command(tmp_path, ["--port", "1"])
    assert command[3:5] == ["serve", str(tmp_path)] and command[-2:] == ["--port", "1"]
    assert "--enforce-eager" in command and "CPU_MLA" in command
    assert json.loads(command[command.index("--compilation-config") + 1]) == {"custom_ops": ["-rotary_embedding"]}
    own = CPU.server_command(tmp_path, ["--attention-backend", "TRITON_MLA"])
    assert own.count("--attention-backend") == 1 and "CPU_MLA" not in own, "what the user says wins"
    assert GPU.server_command(tmp_path, [])[3:] == ["serve", str(tmp_path)]


def test_a_server_without_the_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_checkpoint("mixtral", tmp_path / "model")
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(TimingError, match="add moebench to it or unset it"):
        serve(str(path), [])


def test_the_process_becomes_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_checkpoint("mixtral", tmp_path / "model")
    called: list[tuple[str, list[str]]] = []

    class Replaced(BaseException):
        """Stands for a process that is another program from here on."""

    def execv(program: str, arguments: list[str]) -> None:
        called.append((program, arguments))
        raise Replaced

    monkeypatch.setattr("os.execv", execv)
    with pytest.raises(Replaced):
        serve(str(path), ["--port", "7", "--dtype", "float32"])
    here = ["--host", "127.0.0.1"]
    command = engine_here().server_command(path, [*here, "--port", "7", "--dtype", "float32"])
    assert called == [(command[0], command)] and command[-4:] == ["--port", "7", "--dtype", "float32"]
    with pytest.raises(CheckpointError):
        serve(str(tmp_path / "nowhere"), [])
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "per_layer_config": {"0": {}}}))
    with pytest.raises(TimingError, match=r"cannot be served: .*ignores it"):
        serve(str(path), [])
    assert len(called) == 1


@pytest.mark.parametrize(("arguments", "hosts"), [([], 1), (["--host", "0.0.0.0"], 1), (["--host=::"], 0)])
def test_the_network_is_only_reached_when_asked_for(
    arguments: list[str], hosts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, command: called.append(command))
    serve(str(tiny_checkpoint("mixtral", tmp_path / "model")), arguments)
    assert called[0].count("--host") == hosts
    assert ("127.0.0.1" in called[0]) == (not arguments)


def test_a_tokenizer_with_code_of_its_own_is_served_only_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda program, command: called.append(command))
    path = tiny_checkpoint("mixtral", tmp_path / "model")
    stated = {"auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(stated))
    with pytest.raises(TimingError, match=r"tokenization_own\.OwnTokenizer.*give --trust-remote-code"):
        serve(str(path), [])
    assert not called
    serve(str(path), ["--trust-remote-code"])
    serve(str(path), ["--tokenizer=elsewhere"])
    assert "--trust-remote-code" in called[0] and "--trust-remote-code" not in called[1]
