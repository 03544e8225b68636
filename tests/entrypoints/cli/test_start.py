"""`vllm serve` with a checkpoint that cannot be served: one line that says what, where and what to do, and status 1."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.entrypoints.serve.serving import starting
from vllm import LLM
from vllm.engine.setup import DEFAULT_MODEL_PATH
from vllm.entrypoints.cli import main
from vllm.errors import VllmError

Break = Callable[[Path], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the model inside the package, to be broken."""
    return Path(shutil.copytree(DEFAULT_MODEL_PATH, tmp_path / "model"))


def config(**changes: Any) -> Break:
    def change(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: value for key, value in fields.items() if value != "-"}))

    return change


def written(name: str, content: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(content) and None


def removed(pattern: str) -> Break:
    def remove(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return remove


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Break:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return rewrite


def truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def without_one(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[ONE]


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[ONE][3, 5] = torch.nan


ONE = "model.layers.0.mlp.down_proj.weight"


BOMB = struct.pack("<Q", 2**60) + b"{}"
BEFORE_LOADING: list[tuple[str, Break, str]] = [
    ("no folder", shutil.rmtree, "no such directory"),
    ("no config", removed("config.json"), "config.json"),
    ("config not JSON", written("config.json", b"{"), "config.json"),
    ("config a list", written("config.json", b"[]"), "config.json"),
    ("unknown architecture", config(architectures=["LlamaForCausalLLM"]), "Did you mean 'LlamaForCausalLM'"),
    ("unknown model type", config(model_type="llamma"), "llamma"),
    ("no heads", config(num_attention_heads=0), "num_attention_heads=0 must be at least 1"),
    ("a negative size", config(vocab_size=-1), "vocab_size=-1 must be at least 1"),
    ("its own code", config(model_type="own", auto_map={"AutoConfig": "own.Config"}), "trust_remote_code"),
    ("no tokenizer", removed("tokenizer*"), "tokenizer"),
    ("tokenizer not JSON", written("tokenizer.json", b"{"), "tokenizer.json"),
    ("template with a syntax error", written("chat_template.jinja", b"{% if %}"), "syntax error in line 1"),
]
WHILE_LOADING: list[tuple[str, Break, str]] = [
    ("heads that do not divide", config(num_attention_heads=7, head_dim="-"), "heads"),
    ("wrong dimensions", config(intermediate_size=96), "shape"),
    ("no weights", removed("*.safetensors"), "weights"),
    ("weights cut off", truncated, "model.safetensors"),
    ("a header that claims too much", written("model.safetensors", BOMB), "model.safetensors"),
    ("a tensor is missing", weights(without_one), "mlp.down_proj.weight"),
    ("a weight is NaN", weights(with_nan), "NaN|finite"),
]


@pytest.mark.parametrize(("broken", "message"), [(each, text) for _, each, text in BEFORE_LOADING])
def test_what_shows_without_the_weights_ends_the_server_before_an_engine_is_started(
    folder: Path, broken: Break, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(folder)
    assert main(["serve", str(folder), "--host", "127.0.0.1", "--port", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("vllm: ") and message in lines[-1], lines
    assert len([line for line in lines if line.startswith("vllm: ")]) == 1 and "Traceback" not in "\n".join(lines)
    assert [child for child in psutil.Process().children() if "vllm.engine.process" in child.cmdline()] == []


@pytest.mark.parametrize(("broken", "message"), [(each, text) for _, each, text in WHILE_LOADING])
def test_what_shows_in_the_weights_is_one_line_too(folder: Path, broken: Break, message: str) -> None:
    broken(folder)
    with pytest.raises(VllmError, match=message) as error:
        LLM(str(folder))
    assert "\n" not in str(error.value)


def test_the_engines_line_is_the_servers_last(folder: Path) -> None:
    _, broken, message = WHILE_LOADING[-1]
    broken(folder)
    with starting(str(folder)) as running:
        running.read_until("vllm: ")
        assert running.process.wait(10) == 1
    assert any(word in running.lines[-1] for word in message.split("|")) and "Traceback" not in "".join(running.lines)
