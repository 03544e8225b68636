"""Kernels for processors: a small C++ library, called with addresses and numbers.  It knows nothing of torch.

It is built with the package where a compiler is found.  Without it, plain torch computes the same, slower.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm import env
from vllm.errors import ConfigError
from vllm.logging import get_logger
from vllm.ops.native import sources

logger = get_logger(__name__)

TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""What kernels call the dtypes that they compute with."""


@functools.cache
def library() -> Any:
    """Return the module of kernels, or None if there is none: it was not built, or is not wanted."""
    wanted = env.cpu_kernels()
    if wanted == "torch":
        return None
    try:
        kernels = _load()
    except ImportError as error:
        logger.warning(
            "the native kernels cannot be used: %s. Plain torch computes, several times slower. "
            "Install a C++ compiler (g++ or clang++), then this package again",
            error,
        )
        return None
    if wanted is not None:
        if wanted not in kernels.variants():
            known = ", ".join(kernels.variants())
            raise ConfigError(f"VLLM_CPU_KERNELS={wanted} does not run on this processor; use one of torch, {known}")
        kernels.choose(wanted)
    _set_team(kernels, torch.get_num_threads())
    return kernels


def set_threads(count: int) -> None:
    """Compute with so many threads, in torch as in the kernels."""
    torch.set_num_threads(count)
    if kernels := library():
        _set_team(kernels, count)


def takes(x: Tensor) -> bool:
    """Whether the kernels can work on the rows of a tensor."""
    rows = x.dim() > 0 and (x.stride(-1) == 1 or x.shape[-1] == 1)
    return rows and x.device.type == "cpu" and x.dtype in TYPES and library() is not None


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _load() -> Any:
    """Import the extension.  Raises ImportError in words if it isn't there, or isn't made of the sources beside it."""
    try:
        kernels: Any = importlib.import_module("vllm.ops.native._kernels")
    except ModuleNotFoundError:
        raise ImportError("they were not built when the package was installed") from None
    if sources.digest() not in (None, getattr(kernels, "sources", "")):
        raise ImportError("they were built from other sources than those that lie beside them")
    return kernels


def _set_team(kernels: Any, threads: int) -> None:
    """Hand over torch's own threads: a second team on the same cores would stop both (15 ms instead of 8, measured)."""
    kernels.set_team(threads, *_openmp())


@functools.cache
def _openmp() -> tuple[int, int, int]:
    """Return the addresses of the functions that run torch's threads; zeros if torch has another runtime."""
    try:
        paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
        (path,) = paths
        runtime = ctypes.CDLL(path)
        functions = (runtime.GOMP_parallel, runtime.omp_get_thread_num, runtime.omp_get_num_threads)
    except (OSError, ValueError, AttributeError):
        return 0, 0, 0
    first, second, third = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return first, second, third
