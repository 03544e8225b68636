"""Record a computation once, then run it with one call.

A step of a model is hundreds of small operations.  Recorded, they cost no Python: the threads go through them one after
another, with a barrier between.  What was recorded holds for any number of rows up to the one it was recorded with.

    program = record(lambda: model(step), rows=512)
    program.run(3)  →  the first 3 rows of what the function returned

While a function is recorded nothing is computed.  Its operations must all be kernels: whatever else it does to a tensor
but look at it from another angle is refused, since that would happen now and never again.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vllm.ops import memory
from vllm.ops.native import library


class NotRecordable(Exception):
    """An operation that is no kernel."""


class Program:
    """Recorded operations, the memory that they work in, and their result for as many rows as there can be."""

    def __init__(self, operations: Any, output: Tensor, memory: Any) -> None:
        self.output: Tensor | None = output
        self.most = len(output)
        self._operations = operations
        self._memory = memory
        self._run = library().run

    def run(self, rows: int) -> Tensor:
        """Compute; the result is overwritten by the next run.  -> [rows, …]"""
        self._run(self._operations, rows)
        assert self.output is not None
        return self.output[:rows]


def record(function: Callable[[], Tensor]) -> Program:
    """Record what a function does to tensors that all have as many rows as there can be.

    The tensors that it reads and writes must keep their places.  Raises NotRecordable.
    """
    kernels = library()
    arena = _Arena()
    kernels.start_recording()
    try:
        with memory.taken_from(arena.take), _OnlyViews():
            output = function()
    finally:
        operations = kernels.stop_recording()
    return Program(operations, output, arena)


class _OnlyViews(TorchDispatchMode):
    """Refuses everything that computes."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Say that nothing is compiled here: torch would import its compiler first, for about a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            result = func(*args, **(kwargs or {}))
            if _is_view(result, args[0]):  # x.to(dtype) and x.contiguous() are one or the other
                return result
        raise NotRecordable(f"{func} is not a kernel")


def _is_view(result: Tensor | Sequence[Tensor], of: Tensor) -> bool:
    """Whether all that an operation returned lies in the memory of what it was given."""
    found = [result] if isinstance(result, Tensor) else result
    return all(x.untyped_storage().data_ptr() == of.untyped_storage().data_ptr() for x in found)


class _Arena:
    """Lends memory that is lent again once nobody looks at it any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = defaultdict(list)

    def take(self, num_bytes: int) -> np.ndarray:
        free = self._free[num_bytes]
        block = free.pop() if free else memory.raw_zeros(num_bytes)
        loan = block.view(_Loan)
        weakref.finalize(loan, free.append, block)
        return loan


class _Loan(np.ndarray):
    """An array that can tell when it is dropped."""
