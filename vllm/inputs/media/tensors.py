"""What processors make, as bytes that cross to the engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from vllm.messages import Array


def array_of(value: Any) -> Array:
    """Return a tensor, or what can be one, as bytes."""
    import torch

    tensor = torch.as_tensor(np.asarray(value) if isinstance(value, (list, tuple)) else value).contiguous()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return Array(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), tensor.numpy().tobytes())
