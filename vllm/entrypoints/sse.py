"""Server-sent events, read: bytes in whatever pieces they come ─▶ the data of each event."""

from __future__ import annotations

DONE = b"[DONE]"
"""What OpenAI's endpoints send as the last event's data."""


class EventReader:
    r"""Cuts a stream of bytes into events.

    >>> reader = EventReader()
    >>> reader.feed(b'data: {"a"')
    []
    >>> reader.feed(b': 1}\r\n\r\n: a comment\n\ndata: [DONE]\n\n')
    [b'{"a": 1}', b'[DONE]']
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Take bytes; return the data of the events that they complete.  Fields other than data are passed over."""
        self._rest += piece
        if b"\n" not in piece:
            return []
        lines = self._rest.split(b"\n")
        self._rest = lines.pop()
        events = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if line.startswith(b"data:"):
                self._data.append(bytes(line[6:] if line[5:6] == b" " else line[5:]))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events
