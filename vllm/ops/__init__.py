"""One function per operation.  Layers import from here and never ask which device they run on.

Every operation here is batch invariant: what it computes for a token is the same to the last bit whatever else is in
the step.  The plain-torch versions (`linear`, `norms`, `activations`, `rotary`, `moe`, `attention_torch`) are the
truth of the tests and the fallback on any device.
"""

from __future__ import annotations

import torch

from vllm.ops.activations import ACTIVATIONS, activation, gated_activation
from vllm.ops.attention import AttentionBackend
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.linear import embedding, linear
from vllm.ops.moe import moe, route
from vllm.ops.norms import layer_norm, rms_norm
from vllm.ops.rotary import rotary

__all__ = [
    "ACTIVATIONS",
    "activation",
    "attention_backend",
    "embedding",
    "gated_activation",
    "layer_norm",
    "linear",
    "moe",
    "rms_norm",
    "rotary",
    "route",
]


def attention_backend(device: torch.device) -> AttentionBackend:
    """Return the best attention backend of a device.  It keeps no state, so it may be asked for in several places."""
    return TorchAttention(device)
