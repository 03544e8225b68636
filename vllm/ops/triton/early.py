"""Kernels that start while the one before them ends (programmatic dependent launch, from compute capability 9.0 on).

A kernel lets the next one start as soon as all its programs run, and waits for the end of the one before it when it comes to
what that one writes.  All that it reads before are weights and what the host has sent long ago.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def early(device: torch.device) -> dict[str, bool]:
    """Return the options of a launch: whether the kernel may start before the one before it has ended."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"EARLY": True, "launch_pdl": True} if able else {"EARLY": False}


@triton.jit
def let_next_start(EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(EARLY: tl.constexpr):
    if EARLY:
        tl.extra.cuda.gdc_wait()
