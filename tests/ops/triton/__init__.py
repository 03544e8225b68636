"""Kernels for GPUs.  They run in Triton's interpreter, or on a GPU:  TRITON_INTERPRET=0 pytest tests/ops/triton"""

from __future__ import annotations

import os

import torch
from hypothesis import Phase, settings

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda")
"""Where kernels are run"""

if DEVICE.type == "cuda":  # where each example is compiled, looking for the smallest that fails takes hours
    settings.register_profile("gpu", settings.default, phases=(Phase.explicit, Phase.generate))
    settings.load_profile("gpu")
