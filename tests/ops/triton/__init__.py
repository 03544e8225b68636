"""Kernels for GPUs.  They run in Triton's interpreter, or on a GPU:  TRITON_INTERPRET=0 pytest tests/ops/triton"""

from __future__ import annotations

import os

import torch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda")
"""Where kernels are run"""
