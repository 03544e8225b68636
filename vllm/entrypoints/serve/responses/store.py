"""The responses that are kept, to be fetched and to be gone on from: in memory, within limits."""

from __future__ import annotations

import time

from vllm.entrypoints.serve.responses.record import Record

_MOST_BYTES = 128 * 2**20  # of conversations and responses, whose texts the newest of a conversation share


class Store:
    """Keeps the newest responses.  Those that are not ended stay: the queue's places limit them."""

    def __init__(self, most: int, lifetime: float, most_bytes: int = _MOST_BYTES) -> None:
        """`most`: responses kept; `lifetime`: seconds that one is kept."""
        self.most = most
        self.lifetime = lifetime
        self.most_bytes = most_bytes
        self._records: dict[str, Record] = {}
        self._sizes: dict[str, int] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> None:
        """Keep a record, or take note of what has become of it."""
        size = record.num_bytes
        self.num_bytes += size - self._sizes.get(record.id, 0)
        self._records[record.id], self._sizes[record.id] = record, size
        self._prune()

    def get(self, name: str, owner: bytes = b"") -> Record | None:
        """Return a record that is still kept, if it is the owner's."""
        self._prune()
        record = self._records.get(name)
        return record if record is not None and record.owner == owner else None

    def _prune(self) -> None:
        """Drop what is too old, then the oldest until the rest is within the limits."""
        now = time.monotonic()
        for record in [*self._records.values()]:  # oldest first
            if now - record.born <= self.lifetime and len(self) <= self.most and self.num_bytes <= self.most_bytes:
                return
            if record.has_ended:
                del self._records[record.id]
                self.num_bytes -= self._sizes.pop(record.id)
