"""Facts about the device: which one, how much memory is free, which dtypes it computes natively."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """The number of cores this process may really use: affinity and the cgroup's quota respected."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping, a cgroup's limit respected."""
    free = _available()
    limit, used = _number("/sys/fs/cgroup/memory.max"), _number("/sys/fs/cgroup/memory.current")
    return min(free, max(0, limit - used + _page_cache())) if limit and used is not None else free


def native_bfloat16() -> bool:
    """Whether the processor has bfloat16 arithmetic; without it, float32 is faster."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text() or "bf16" in _arm_features()
    except OSError:
        return False


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
