"""Weight matrices as the kernels read them: row after row, wherever the rows lie, in groups of 16.

    checkpoint file, mapped      groups
    "…q_proj.weight"  ─────────▶ 0 … 55       A part that needs no conversion is not copied: its groups point into the
    "…k_proj.weight"  ─────────▶ 56 … 63      file.  That costs neither time nor memory, and processes that serve the
    "…v_proj.weight"  ─────────▶ 64 … 71      same model share it.

Quantized parts are packed into memory of their own as they come.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm.ops.activations import CODES
from vllm.ops.matrix import Matrix, MatrixShape, RowsPlace
from vllm.ops.memory import Arena, empty
from vllm.ops.native import TYPES, address, library
from vllm.ops.native.rows import gather
from vllm.weights import Place, TensorPlace

_LANES = 16
_BLOCK = 128  # elements of x that share a scale
_INT4_SCALES = 96  # bytes of struct Int4Scales of native/src/quantized.inl
_CODES = {None: None, "int8": 2, "int4": 3}

_GROUP = np.dtype([("rows", "u8"), ("scales", "u8"), ("stride", "i8"), ("count", "i4"), ("column", "i4")], align=True)
"""struct Group of kernels.hpp"""


def refuses(shape: MatrixShape) -> str | None:
    """Return why the kernels can't hold such a matrix; None if they can."""
    if shape.format not in _CODES:
        return f"{shape.format} is for GPUs; use int8"
    if shape.dtype not in TYPES:
        return f"the kernels compute in float32 and bfloat16, not in {shape.dtype}"
    if shape.format is None and shape.width * shape.dtype.itemsize % 4:
        return f"rows of {shape.width} elements of {shape.dtype} are not a multiple of 4 bytes"
    return None


@dataclass(slots=True)
class _Part:
    """Neighbouring rows that came from one tensor."""

    first: int
    rows: int
    content: Tensor
    """[rows, width], or the packed groups"""
    scales: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Table:
    groups: np.ndarray
    """[groups] of struct Group"""
    biases: np.ndarray | None
    """[groups, 16] float32"""


class NativeMatrix(Matrix):
    """Rows of weights in float32, bfloat16, int8 or int4."""

    def __init__(self, shape: MatrixShape) -> None:
        super().__init__(shape, _bytes(shape))
        self.bias = torch.zeros(shape.rows, dtype=torch.float32) if shape.bias else None
        self._parts: list[_Part] = []
        self._made: _Table | None = None

    def place(self, first: int, rows: int) -> Place:
        return RowsPlace(self.shape, first, rows, self.put)

    def bias_place(self, first: int, rows: int) -> Place:
        assert self.bias is not None
        return TensorPlace(self.bias[first : first + rows], self.shape.dtype)

    def put(self, first: int, content: Tensor) -> None:
        """Take over rows, of the matrix's dtype.  Their memory must not change any more.  [rows, width]

        Rows that come again take the place of the first.
        """
        rows = content.shape[0]
        self._parts = [part for part in self._parts if part.first != first]
        half = self.shape.rows // 2
        if self.shape.gated and first < half < first + rows:  # gate and up in one tensor
            self.put(first, content[: half - first])
            self.put(half, content[half - first :])
        elif self.shape.format is not None:
            self._parts.append(_Part(first, rows, *_quantize(content, self.shape)))
        else:
            self._parts.append(_Part(first, rows, content if content.stride(1) == 1 else content.contiguous()))
        self._made = None

    def multiply(
        self,
        x: Tensor,
        *,
        activation: str | None = None,
        residual: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        shape = self.shape
        table = self._table()
        columns = shape.rows // 2 if shape.gated else shape.rows
        y = empty(x.shape[0], columns, dtype=dtype or x.dtype)
        library().linear(
            x.shape[0],
            address(x),
            address(y),
            address(residual),
            0 if table.biases is None else table.biases.ctypes.data,
            table.groups.ctypes.data,
            len(table.groups),
            shape.width,
            x.stride(0),
            columns,
            0 if residual is None else residual.stride(0),
            _CODES[shape.format] or TYPES[shape.dtype],
            TYPES[x.dtype],
            TYPES[y.dtype],
            CODES[activation],
            int(shape.gated),
        )
        return y

    def look_up(self, ids: Tensor, scale: float = 1.0, offset: int = 0) -> Tensor:
        return gather(self.content, ids, scale, offset)

    @property
    def content(self) -> Tensor:
        """The rows, where they came in one part and are not quantized, as tables that are looked up.  [rows, width]"""
        (table,) = self._parts
        assert table.scales is None
        return table.content

    def _table(self) -> _Table:
        """Return the matrix as the kernels want it; made when it is first used."""
        if self._made is None:
            parts = sorted(self._parts, key=lambda part: part.first)
            assert sum(part.rows for part in parts) == self.shape.rows, "a matrix is used before it is filled"
            columns = self.shape.rows // 2 if self.shape.gated else self.shape.rows
            groups = np.concatenate([_groups(part, self.shape, columns) for part in parts])
            self._made = _Table(groups, None if self.bias is None else _lanes(self.bias.numpy(), parts))
        return self._made


_arena = Arena()
"""Where packed weights lie.  It holds no memory itself."""


def _groups(part: _Part, shape: MatrixShape, columns: int) -> np.ndarray:
    first = np.arange(0, part.rows, _LANES)
    groups = np.zeros(len(first), dtype=_GROUP)
    groups["count"] = np.minimum(_LANES, part.rows - first)
    groups["column"] = (part.first + first) % columns
    if part.scales is None:
        groups["stride"] = part.content.stride(0) * shape.dtype.itemsize
        groups["rows"] = part.content.data_ptr() + first * groups["stride"]
    else:
        index = np.arange(len(first))
        groups["rows"] = part.content.data_ptr() + index * (part.content.nbytes // len(first))
        groups["scales"] = part.scales.data_ptr() + index * (part.scales.nbytes // len(first))
    return groups


def _lanes(bias: np.ndarray, parts: list[_Part]) -> np.ndarray:
    """Lay biases out as the groups lie; where a group has fewer than 16 rows, the rest is 0.  [rows] -> [groups, 16]"""
    padded = [np.pad(bias[part.first : part.first + part.rows], (0, -part.rows % _LANES)) for part in parts]
    return np.concatenate(padded).reshape(-1, _LANES)


def _quantize(content: Tensor, shape: MatrixShape) -> tuple[Tensor, Tensor]:
    """Pack rows.  [rows, width] -> packed groups, scales"""
    groups, blocks = -(-content.shape[0] // _LANES), -(-shape.width // _BLOCK)
    if shape.format == "int8":
        packed = _arena.zeros(groups, blocks * _BLOCK * _LANES, dtype=torch.uint8)
        scales = _arena.zeros(groups, _LANES, dtype=torch.float32)
    else:
        packed = _arena.zeros(groups, blocks * _BLOCK * _LANES // 2, dtype=torch.uint8)
        scales = _arena.zeros(groups, blocks, _INT4_SCALES, dtype=torch.uint8)
    library().quantize(
        content.shape[0],
        address(content),
        *content.stride(),
        TYPES[content.dtype],
        shape.width,
        address(packed),
        address(scales),
        _CODES[shape.format],
    )
    return packed, scales


def _bytes(shape: MatrixShape) -> int:
    blocks = -(-shape.width // _BLOCK)
    if shape.format == "int8":
        return shape.rows * (blocks * _BLOCK + 4)
    if shape.format == "int4":
        return shape.rows * blocks * (_BLOCK // 2 + _INT4_SCALES // _LANES)
    return shape.rows * shape.width * shape.dtype.itemsize
