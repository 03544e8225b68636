"""`vllm collect-env`: what a report of a fault should say about the machine.  No secret is printed."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vllm import env
from vllm.device import free_memory, native_bfloat16, usable_cores
from vllm.version import __version__

_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(options: argparse.Namespace) -> None:
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for title, entries in facts.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name}: {value}")


def collect() -> dict[str, dict[str, Any]]:
    """Return the facts by group.  What cannot be found out says why."""
    return {
        "package": _package(),
        "system": _system(),
        "processor": _processor(),
        "accelerators": _accelerators(),
        "installed": _installed(),
        "environment": env.settings(),
    }


def _package() -> dict[str, Any]:
    facts: dict[str, Any] = {"vllm": __version__, "folder": str(Path(__file__).parents[2])}
    try:
        from vllm.ops import native

        kernels = native.library()
        facts["native kernels"] = "none, plain torch computes" if kernels is None else ", ".join(kernels.variants())
    except Exception as error:  # a broken installation is what this command is for
        facts["native kernels"] = f"{type(error).__name__}: {error}"
    return facts


def _system() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "python": f"{platform.python_version()} ({platform.python_implementation()}), {sys.executable}",
        "libc": " ".join(platform.libc_ver()) or "unknown",
        "compiler": _first_line(["c++", "--version"]),
        "in a container": Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
    }


def _processor() -> dict[str, Any]:
    info = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags.group(1).split()) if flags else set()
    return {
        "model": model.group(1) if model else platform.processor() or platform.machine(),
        "usable cores": usable_cores(),
        "features": ", ".join(name for name in _FEATURES if name in present) or "unknown",
        "bfloat16 arithmetic": native_bfloat16("cpu"),
        "free memory": f"{free_memory('cpu') / 2**30:.1f} GiB",
    }


def _accelerators() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"torch": f"cannot be imported: {error}"}
    facts: dict[str, Any] = {"torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "processors"}
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        facts["driver"] = _first_line(query)
    return facts


def _installed() -> dict[str, Any]:
    """The versions of the packages that this one requires, extras included."""
    try:
        required = importlib.metadata.requires("vllm") or []
    except importlib.metadata.PackageNotFoundError:
        required = []
    names = sorted({re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in required})
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return (done.stdout.strip() or done.stderr.strip() or "none").splitlines()[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
