"""Batches under way: decided, and not yet accounted for."""

from __future__ import annotations

from collections import deque

from vllm.messages import Row
from vllm.scheduler.request import Request


class InFlight:
    """Keeps, per batch under way, whose rows it has, and in the requests what is under way of them."""

    def __init__(self) -> None:
        self._batches: deque[list[tuple[Request, bool]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._batches)

    def push(self, rows: list[tuple[Request, Row]]) -> None:
        """A batch is given to the worker."""
        self._batches.append([(request, row.wants_token and request.chooses) for request, row in rows])
        for request, chooses in self._batches[-1]:
            request.num_inflight += 1
            request.num_unknown += chooses

    def pop(self) -> list[Request]:
        """The oldest batch is back."""
        batch = self._batches.popleft()
        for request, chooses in batch:
            request.num_inflight -= 1
            request.num_unknown -= chooses
        return [request for request, _ in batch]

    def forget(self) -> None:
        """None of them will be accounted for."""
        while self._batches:
            self.pop()
