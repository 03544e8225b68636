"""A response as a stream: typed events, numbered, in the order in which the API has them.

    created, in_progress, output_item.added, content_part.added
    output_text.delta, ...
    output_text.done, content_part.done, output_item.done, completed or incomplete
A response that fails ends with `failed`, whatever had come before.
"""

from __future__ import annotations

import msgspec

from vllm.entrypoints.serve.conversation import named_event
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.protocol import TokenLogprob
from vllm.entrypoints.serve.responses.protocol import (
    DeltaEvent,
    ItemEvent,
    LifeEvent,
    OutputMessage,
    OutputText,
    PartEvent,
    TextEvent,
)
from vllm.entrypoints.serve.responses.record import Record


class Events:
    """Writes the events of one response."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._number = -1

    def opening(self, item_id: str) -> bytes:
        """Return what comes before the text."""
        item = OutputMessage(item_id, "in_progress", [])
        response = msgspec.structs.replace(self._record.response, status="in_progress", output=[], usage=None)
        response = msgspec.structs.replace(response, completed_at=None, incomplete_details=None)
        return (
            self._life("created", response)
            + self._life("in_progress", response)
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

    def _life(self, what: str, response: object) -> bytes:
        return self._write(LifeEvent(f"response.{what}", response, self._next()))  # type: ignore[arg-type]

    def _write(self, event: LifeEvent | ItemEvent | PartEvent | DeltaEvent | TextEvent) -> bytes:
        return named_event(event.type, event)

    def _next(self) -> int:
        self._number += 1
        return self._number
