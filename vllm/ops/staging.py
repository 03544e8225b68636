"""The way of small arrays between host and device, without either waiting for the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def send(values: np.ndarray, target: Tensor) -> None:
    """Copy an array to where the device reads it."""
    source = torch.from_numpy(np.ascontiguousarray(values))
    if target.is_cuda:
        source = source.pin_memory()  # a copy, which lives until the device has read it
    target.copy_(source, non_blocking=True)


def sent(values: np.ndarray, device: torch.device) -> Tensor:
    """Return an array as a tensor of the device."""
    source = torch.from_numpy(np.ascontiguousarray(values))
    return source if device.type == "cpu" else source.pin_memory().to(device, non_blocking=True)


def fetch(*tensors: Tensor) -> Callable[[], list[np.ndarray]]:
    """Start to copy tensors to the host; the function that is returned waits until they are there."""
    if not tensors or not tensors[0].is_cuda:
        arrays = [tensor.numpy() for tensor in tensors]
        return lambda: arrays
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    done = torch.cuda.Event()
    done.record()

    def wait() -> list[np.ndarray]:
        done.synchronize()
        return [copy.numpy() for copy in copies]

    return wait


def mark(device: torch.device) -> Callable[[], None]:
    """Return a function that waits until a device has done all that it was given by now."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize
