"""Kernels for GPUs.  They run in Triton's interpreter, or with TRITON_INTERPRET=0 on a GPU, those that were written for both."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET", "1") == "1" else "cuda")
"""Where kernels are run"""
