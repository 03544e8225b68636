"""Facts about the device: which one, how much memory is free, which dtypes it computes natively.

They are found without torch, so that a process which never computes can know them too.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from pathlib import Path

from vllm.errors import ConfigError

_OLDEST = (7, 5)
"""Compute capability of the oldest GPU that the kernels run on."""
_MAJOR, _MINOR = 75, 76
"""Numbers of the attributes of a device that hold its compute capability."""


def usable_cores() -> int:
    """The number of cores this process may really use: affinity and the cgroup's quota respected."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def choose_device(wanted: str) -> str:
    """Return the device to compute on: cuda or cpu.

    `wanted` is auto, cuda or cpu; auto takes a GPU that torch can use if there is one.  Raises ConfigError, with the
    reason, for a GPU that is asked for and can't be used.
    """
    if wanted == "cpu":
        return "cpu"
    reason = _no_gpu()
    if reason is None:
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(f"device='cuda' can't be used: {reason}")
    return "cpu"


def free_memory(device: str) -> int:
    """Bytes that can be taken: of main memory without swapping, a cgroup's limit respected, or of a GPU's own."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info()[0]
    free = _available()
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return min(free, max(0, limit - used + _page_cache())) if limit and used is not None else free


def native_bfloat16(device: str) -> bool:
    """Whether the device has bfloat16 arithmetic; without it, float32 (or on a GPU float16) is faster."""
    if device != "cpu":
        capability = _capability()
        return capability is not None and capability >= (8, 0)
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text() or "bf16" in _arm_features()
    except OSError:
        return False


@functools.cache
def has_tiles() -> bool:
    """Whether the processor multiplies tiles of matrices (AMX)."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _no_gpu() -> str | None:
    """Return why no NVIDIA GPU can be used, in words; None if one can."""
    capability = _capability()
    if capability is None:
        return "no NVIDIA GPU with a driver is found on this machine"
    if capability < _OLDEST:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}; the kernels need at least {_OLDEST[0]}.{_OLDEST[1]}"
    if not _torch_has_cuda():
        return "the installed torch computes on processors only; install one that is built for CUDA"
    if importlib.util.find_spec("triton") is None:
        return "the kernels need triton, which is not installed"
    return None


@functools.cache
def _capability() -> tuple[int, int] | None:
    """Return the compute capability of the first GPU, as its driver says; None if there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    calls = (
        (driver.cuInit, 0),
        (driver.cuDeviceGetCount, ctypes.byref(count)),
        (driver.cuDeviceGet, ctypes.byref(device), 0),
        (driver.cuDeviceGetAttribute, ctypes.byref(major), _MAJOR, device),
        (driver.cuDeviceGetAttribute, ctypes.byref(minor), _MINOR, device),
    )
    if any(function(*args) for function, *args in calls):
        return None
    return major.value, minor.value


def _torch_has_cuda() -> bool:
    """Whether torch was built for CUDA; read from its file, since importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    folders = (found.submodule_search_locations if found else None) or []
    texts = [file.read_text() for folder in folders if (file := Path(folder) / "version.py").is_file()]
    return any(re.search(r"^cuda[^=]*= *['\"]", text, re.MULTILINE) for text in texts)


def _available() -> int:
    """Bytes that the system can give: as it says itself, or as psutil finds out where there is no /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    if kilobytes is not None:
        return int(kilobytes) * 1024
    import psutil

    return psutil.virtual_memory().available


def _arm_features() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].split() for line in lines if line.startswith("Features")), [])


def _cgroup_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _number(path: str) -> int | None:
    try:
        text = Path(path).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _page_cache() -> int:
    """File pages count as used in a cgroup but are given back on demand."""
    try:
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        return int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    except (OSError, ValueError):
        return 0
