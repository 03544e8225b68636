"""Record what a computation launches on a GPU, and launch it again with one call.

A recording holds for steps of one form and one number of rows, so numbers are rounded up to a few sizes.  The first time that a size is wanted it
is computed as it is, which also makes its kernels ready; the second time it is recorded.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm.logging import get_logger
from vllm.ops.attention import MOST_RECORDED

logger = get_logger(__name__)
_SIZES = (
    *(1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *range(640, 1024, 128),
    *range(1024, MOST_RECORDED + 1, 256),
)


class Graphs:
    """Recordings of one computation, by their numbers of rows."""

    def __init__(self, function: Callable[[int], Tensor], rows: int, device: torch.device, pool: Any) -> None:
        """The function computes any number of rows up to `rows`, always in the same places.  `pool` names memory that recordings
        of one computation may share: what one has put there the next writes over."""
        self.function = function
        self.output: Tensor | None = None
        self.most = min(rows, _SIZES[-1])
        self._sizes = [*(size for size in _SIZES if size < self.most), self.most]
        self._seen: set[int] = set()
        self._works = True
        self._recorded: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._pool = pool
        self._stream = torch.cuda.Stream(device)

    def run(self, rows: int) -> Tensor:
        """Compute; the result is overwritten by the next run.  -> [rows, …]"""
        size = self._sizes[bisect.bisect_left(self._sizes, rows)]
        recorded = self._recorded.get(size)
        if recorded is None and size in self._seen and self._works:
            recorded = self._record(size)
        self._seen.add(size)
        if recorded is None:
            return self.function(size)[:rows]
        graph, output = recorded
        graph.replay()
        return output[:rows]

    def _record(self, size: int) -> tuple[torch.cuda.CUDAGraph, Tensor] | None:
        """Record for a number of rows.  A computation that has to wait for the device can't be recorded, now or later."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = self.function(size)
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            logger.info("steps are not recorded: %s", str(error).splitlines()[0])
            self._works = False
            return None
        current.wait_stream(self._stream)
        self._recorded[size] = graph, output
        return graph, output
