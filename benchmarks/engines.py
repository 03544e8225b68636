"""Who takes part: each engine in each precision that it is measured in, as data."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import environments

ROOT = Path(__file__).parents[1]
OURS = "ours"
GIB = 2**30
# Settings of the caller's shell that would give one engine something that the others don't have.
CLEARED = ("PYTHON", "OMP_", "KMP_", "GOMP_", "MKL_", "VLLM_", "LD_PRELOAD", "MALLOC_")
QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine in one precision."""

    name: str
    title: str
    adapter: str
    """A module of `adapters/`."""
    precision: str
    checkpoint: str
    """A kind of `checkpoints.py`."""
    environment: str | None = None
    """A name of `environments.py`; None: the one that runs the benchmark."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Options in the engine's own words."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables; {cores} stands for the cores to compute on, as "0,1", and {work} for the work folder."""
    memory: int = 3 * GIB
    """Bytes that must be free before it is loaded beside others."""

    @property
    def is_ours(self) -> bool:
        return self.environment is None

    def reason_missing(self, work: Path) -> str | None:
        """Why it cannot be run here, in words; None if it can."""
        return None if self.environment is None else environments.reason_missing(self.environment, work)

    def python(self, work: Path) -> Path:
        return Path(sys.executable) if self.environment is None else environments.interpreter(self.environment, work)

    def command(self, work: Path) -> list[str]:
        return [str(self.python(work)), str(ROOT / "benchmarks" / "child.py"), self.adapter]

    def variables_for(self, work: Path, cores: list[int], inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
        """The environment of its process: the caller's without what would favour somebody, and its own."""
        kept = {name: value for name, value in inherited.items() if not name.startswith(CLEARED)}
        given = {"cores": ",".join(map(str, cores)), "work": str(work.absolute())}
        own = {name: value.format(**given) for name, value in self.variables.items()}
        path = {"PYTHONPATH": str(ROOT)} if self.is_ours else {}
        return kept | QUIET | path | own


def _vllm(name: str, title: str, settings: dict[str, Any]) -> Engine:
    variables = {"VLLM_CPU_OMP_THREADS_BIND": "{cores}", "VLLM_CACHE_ROOT": "{work}/cache/vllm"}
    return Engine(name, title, "vllm_cpu", "bf16", "safetensors", "vllm", settings, variables, memory=6 * GIB)


# By default OpenVINO computes 256 tokens in a step, which took 13 % more processor time for W2 and 19 % for W3.
LONG_STEPS = {"max_num_batched_tokens": 4096}
ENGINES = {
    each.name: each
    for each in (
        Engine("ours-bf16", "this engine", "ours", "bf16", "safetensors"),
        _vllm("vllm", "vLLM, compiled", {}),
        _vllm("vllm-eager", "vLLM, eager", {"enforce_eager": True}),
        Engine("transformers", "transformers", "transformers_generate", "bf16", "safetensors", "transformers"),
        Engine("llamacpp-bf16", "llama.cpp", "llamacpp", "bf16", "bf16", "llamacpp"),
        Engine("ours-int8", "this engine", "ours", "int8", "safetensors", settings={"quantization": "int8"}),
        Engine("llamacpp-q8_0", "llama.cpp Q8_0", "llamacpp", "int8", "q8_0", "llamacpp"),
        Engine("openvino-q8_0", "OpenVINO Q8_0", "openvino_cb", "int8", "q8_0", "openvino", LONG_STEPS),
        Engine("ours-int4", "this engine", "ours", "int4", "safetensors", settings={"quantization": "int4"}),
        Engine("llamacpp-q4_0", "llama.cpp Q4_0", "llamacpp", "int4", "q4_0", "llamacpp"),
        Engine("openvino-q4_0", "OpenVINO Q4_0", "openvino_cb", "int4", "q4_0", "openvino", LONG_STEPS),
    )
}
