"""Loading takes the memory of the weights and little more, whatever they are converted to on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm.ops import native

MB = 1 << 20
NUM_TENSORS, BYTES = 20, 10 * MB
SCRIPT = """
import re, sys
from pathlib import Path
import torch
from vllm.layers.placement import Placement
from vllm.loader.fill import fill
from vllm.loader.read import tensors
from vllm.weights import Window

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

file, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
placement = Placement(dtype, torch.device("cpu"), sys.argv[3] or None)
matrices = [placement.matrix(1024, 5120) for _ in range(20)]
before = peak()
windows = [Window(str(number), matrix.place(0, 1024)) for number, matrix in enumerate(matrices)]
fill(windows, tensors([file]), where="here")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system doesn't say what memory a process had")
@pytest.mark.skipif(
    native.library() is None, reason="there are no kernels, and plain torch keeps weights in its own way"
)
@pytest.mark.parametrize(
    ("dtype", "quantization", "factor"),
    [("bfloat16", "", 0.0), ("float16", "", 1.0), ("float32", "", 2.0), ("bfloat16", "int8", 0.5)],
)
def test_loading_takes_the_memory_of_the_weights(tmp_path: Path, dtype: str, quantization: str, factor: float) -> None:
    """What needs no conversion stays in the file."""
    stored = {str(number): torch.ones(1024, 5120, dtype=torch.bfloat16) for number in range(NUM_TENSORS)}
    save_file(stored, tmp_path / "model.safetensors")
    arguments = [str(tmp_path / "model.safetensors"), dtype, quantization]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=True)
    assert int(done.stdout) < factor * NUM_TENSORS * BYTES * 1.15 + 6 * BYTES
