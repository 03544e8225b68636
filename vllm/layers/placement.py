"""Where a module's weights live, and how they are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from vllm import ops
from vllm.ops.matrix import Matrix, MatrixShape
from vllm.ops.parallel import ALONE, Group


@dataclass(frozen=True, slots=True)
class Placement:
    """The dtype and device of the weights of a model, and who shares them."""

    dtype: torch.dtype
    device: torch.device
    format: str | None = None
    """What matrices are quantized to: int8, int4 or fp8."""
    group: Group = ALONE
    """The processes that share the weights."""

    @property
    def unquantized(self) -> Placement:
        """The same place for what must stay exact."""
        return replace(self, format=None)

    def parameter(self, *shape: int) -> nn.Parameter:
        """Return a parameter for inference, its content undefined until its windows are filled."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)

    def matrix(self, rows: int, width: int, *, bias: bool = False, gated: bool = False) -> Matrix:
        """Return a matrix whose places are to be filled; see `MatrixShape`."""
        return ops.matrix(MatrixShape(rows, width, self.dtype, self.device, bias, gated, self.format))

    def experts(self, count: int, rows: int, width: int, *, bias: bool = False, gated: bool = False) -> nn.ModuleList:
        """Return the matrices of a layer's experts, whose places are to be filled."""
        return ops.experts(count, MatrixShape(rows, width, self.dtype, self.device, bias, gated, self.format))
