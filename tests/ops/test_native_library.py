"""Which kernels are used, and what is said when there are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm import ops
from vllm.errors import ConfigError
from vllm.ops import native
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.matrix import DenseMatrix, MatrixShape
from vllm.ops.native import sources

EXTENSION = "vllm.ops.native._kernels"
WITHOUT_EXTENSION = f"""
import sys
sys.modules[{EXTENSION!r}] = None  # as if there were no such file
from vllm.entrypoints.cli import main
main(["run", "Hello, my name is"])
"""


needs_kernels = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], Any]]:
    """`asked("avx2")` → what library() returns in a process with VLLM_CPU_KERNELS=avx2; None for one without."""

    def ask(kernels: str | None) -> Any:
        if kernels is None:
            monkeypatch.delenv("VLLM_CPU_KERNELS", raising=False)
        else:
            monkeypatch.setenv("VLLM_CPU_KERNELS", kernels)
        return native.library.__wrapped__()

    yield ask
    if kernels := native.library():
        kernels.choose(kernels.variants()[0])


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module warns of, as it comes."""
    found: list[str] = []
    monkeypatch.setattr(native.logger, "warning", lambda message, *values: found.append(message % values))
    return found


@needs_kernels
def test_without_a_wish_there_are_kernels(asked: Any, warnings: list[str]) -> None:
    assert asked(None).variants()[-1] == "portable"
    assert warnings == []


@needs_kernels
def test_each_kind_that_runs_here_can_be_asked_for(asked: Any) -> None:
    for name in asked(None).variants():
        assert asked(name) is not None


def test_plain_torch_can_be_asked_for(asked: Any, warnings: list[str]) -> None:
    assert asked("torch") is None
    assert warnings == []


@needs_kernels
def test_an_unknown_kind_is_refused_with_those_that_run_here(asked: Any) -> None:
    with pytest.raises(ConfigError, match=r"VLLM_CPU_KERNELS=avx1024 .* use one of torch, .*portable"):
        asked("avx1024")


def test_a_kind_for_other_processors_is_refused(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(variants=lambda: ["avx2", "portable"], sources=sources.digest())
    monkeypatch.setitem(sys.modules, EXTENSION, old)
    with pytest.raises(ConfigError, match="use one of torch, avx2, portable"):
        asked("avx512_bf16")


@pytest.mark.parametrize("stale", [SimpleNamespace(), SimpleNamespace(sources="0123456789abcdef")], ids=str)
def test_an_extension_of_other_sources_is_not_used(
    stale: Any, asked: Any, monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, EXTENSION, stale)
    assert asked(None) is None
    (line,) = warnings
    assert "other sources" in line and "this package again" in line


def test_an_extension_whose_sources_are_not_beside_it_is_used(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(sources="0123456789abcdef", set_team=lambda *numbers: None)
    monkeypatch.setitem(sys.modules, EXTENSION, alone)
    monkeypatch.setattr(sources, "digest", lambda: None)
    assert asked(None) is alone


def test_without_the_extension_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    shape = MatrixShape(4, 8, torch.float32, torch.device("cpu"))
    assert isinstance(ops.matrix(shape), DenseMatrix)
    assert isinstance(ops.attention_backend([], torch.float32, shape.device, 16), TorchAttention)
    assert ops.record(torch.ones, 1) is None
    with pytest.raises(ConfigError, match="int8.*native kernels"):
        ops.matrix(MatrixShape(4, 8, torch.float32, torch.device("cpu"), format="int8"))


def test_a_run_without_the_extension_says_once_why_and_what_to_do() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTENSION], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    (line,) = [line for line in done.stderr.splitlines() if "kernels" in line]
    assert "WARNING" in line and "not built" in line and "Install a C++ compiler" in line


def test_the_digest_knows_names_and_contents(tmp_path: Path) -> None:
    assert sources.digest(tmp_path) is None
    found = set()
    for name, text in (("a.cpp", "1"), ("a.cpp", "2"), ("b.inl", ""), ("b.inl", "2"), ("c.hpp", "")):
        (tmp_path / name).write_text(text)
        found.add(sources.digest(tmp_path))
    (tmp_path / "a.cpp").rename(tmp_path / "d.cpp")
    found.add(sources.digest(tmp_path))
    (tmp_path / ".a.cpp.swp").write_text("an editor's")
    found.add(sources.digest(tmp_path))
    assert len(found) == 6 and None not in found
