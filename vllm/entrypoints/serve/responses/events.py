"""A response as a stream: typed events, numbered, in the order in which the API has them.

    created, queued if it is computed in the background
    in_progress, output_item.added, content_part.added
    output_text.delta, ...
    output_text.done, content_part.done, output_item.done, completed or incomplete
A response that fails ends with `failed`, whatever had come before.  A stream that ends otherwise, because the response is
cancelled or the server stops, ends with `error`.
"""

from __future__ import annotations

import msgspec

from vllm.entrypoints.serve.conversation import named_event
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.protocol import TokenLogprob
from vllm.entrypoints.serve.responses.protocol import (
    DeltaEvent,
    ErrorEvent,
    ItemEvent,
    LifeEvent,
    OutputMessage,
    OutputText,
    PartEvent,
    Response,
    Status,
    TextEvent,
)
from vllm.entrypoints.serve.responses.record import Record


class Events:
    """Writes the events of one response."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._number = -1
        self.is_open = False
        """Whether the text has begun."""

    def beginning(self) -> bytes:
        """Return what can be said at once."""
        if not self._record.response.background:
            return self._life("created", self._unfinished("in_progress"))
        queued = self._unfinished("queued")
        return self._life("created", queued) + self._life("queued", queued)

    def opening(self, item_id: str) -> bytes:
        """Return what comes before the text."""
        self.is_open = True
        item = OutputMessage(item_id, "in_progress", [])
        return (
            (self.beginning() if self._number < 0 else b"")
            + self._life("in_progress", self._unfinished("in_progress"))
            + self._write(ItemEvent("response.output_item.added", 0, item, self._next()))
            + self._write(PartEvent("response.content_part.added", item_id, 0, 0, OutputText(""), self._next()))
        )

    def delta(self, item_id: str, text: str, logprobs: list[TokenLogprob]) -> bytes:
        """Return the event of new text; nothing if nothing of it shows."""
        if not text and not logprobs:
            return b""
        return self._write(DeltaEvent("response.output_text.delta", item_id, 0, 0, text, logprobs, self._next()))

    def closing(self) -> bytes:
        """Return what comes after the text."""
        item = self._record.item
        assert item is not None
        part = item.content[0]
        return (
            self._write(TextEvent("response.output_text.done", item.id, 0, 0, part.text, part.logprobs, self._next()))
            + self._write(PartEvent("response.content_part.done", item.id, 0, 0, part, self._next()))
            + self._write(ItemEvent("response.output_item.done", 0, item, self._next()))
            + self._life(self._record.response.status, msgspec.Raw(self._record.body))
        )

    def failed(self, error: HttpError) -> bytes:
        """End the response with an error, and return the event that says so."""
        self._record.fail(error)
        return self._life("failed", msgspec.Raw(self._record.body))

    def error(self, code: str, message: str) -> bytes:
        """End the stream, whatever becomes of the response."""
        return self._write(ErrorEvent(code=code, message=message, sequence_number=self._next()))

    def _unfinished(self, status: Status) -> Response:
        """Return the response as it was before there was anything of it."""
        response = msgspec.structs.replace(self._record.response, status=status, output=[], usage=None)
        return msgspec.structs.replace(response, completed_at=None, incomplete_details=None)

    def _life(self, what: str, response: object) -> bytes:
        return self._write(LifeEvent(f"response.{what}", response, self._next()))  # type: ignore[arg-type]

    def _write(self, event: LifeEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent | ErrorEvent) -> bytes:
        written = named_event(event.type, event)
        if self._record.log is not None:
            self._record.log.add(written)
        return written

    def _next(self) -> int:
        self._number += 1
        return self._number
