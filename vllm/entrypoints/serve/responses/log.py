"""The events of a response in the background, for whoever reads along: from its start, or from where they had left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator


class EventLog:
    """Events in order; the one at position N has the sequence number N."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._events: list[bytes] = []
        self._has_ended = False
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: bytes) -> None:
        self._events.append(event)
        self.num_bytes += len(event)
        self._wake()

    def end(self) -> None:
        """Say that no event follows."""
        self._has_ended = True
        self._wake()

    async def after(self, number: int) -> AsyncGenerator[bytes, None]:
        """Yield the events with a higher sequence number than `number`, also those that are yet to come."""
        position = number + 1
        while True:
            news = self._events[position:]
            if news:
                position += len(news)
                yield b"".join(news)
            elif self._has_ended:
                return
            else:
                await self._news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
