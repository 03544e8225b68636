"""Whose fault was it?  After a step that failed as a whole, its requests are tried again, half of them at a time.

failed: a b c d  ─▶  groups: [a b] [c d]   the last group runs, alone, until all of it has come as far as before
failed: c d      ─▶  groups: [a b] [c] [d]
failed: d        ─▶  d is it
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vllm.scheduler.request import Request, Status


class Suspects:
    """Groups of requests, each with the number of computed tokens at which it is above suspicion."""

    def __init__(self) -> None:
        self._groups: list[dict[Request, int]] = []

    def may_run(self, request: Request) -> bool:
        """Whether a request may be in the next step: any, unless a group is being tried."""
        return not self._groups or request in self._groups[-1]

    def split(self, failed: Mapping[Request, int]) -> None:
        """Put the requests of a failed step, with how far it would have taken them, into two groups."""
        tried = self._groups[-1] if self._groups else {}
        reached = {request: max(count, tried.pop(request, 0)) for request, count in failed.items()}
        requests = list(reached)
        for half in (requests[: len(requests) // 2], requests[len(requests) // 2 :]):
            self._groups.append({request: reached[request] for request in half})

    def came_to(self, request: Request, num_computed: int) -> None:
        """A request's step went well."""
        group = self._groups[-1] if self._groups else {}
        if num_computed >= group.get(request, math.inf):
            del group[request]

    def forget_ended(self) -> None:
        """Drop those that have ended, and the groups that nobody is left in."""
        while self._groups:
            group = self._groups[-1]
            for request in [each for each in group if each.status is Status.FINISHED]:
                del group[request]
            if group:
                return
            self._groups.pop()
