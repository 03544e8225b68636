"""A message from its first token to its last: whole, or as a stream of named events.

    message_start, content_block_start, ping
    content_block_delta, ...
    content_block_stop, message_delta, message_stop
A stream that fails ends with `error`, whatever had come before.
"""

from __future__ import annotations

from vllm.entrypoints.serve.anthropic.protocol import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Event,
    Message,
    MessageDelta,
    MessageEnd,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    TextBlock,
    TextDelta,
    error_body,
)
from vllm.entrypoints.serve.conversation import named_event, only_completion
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.generation import Count
from vllm.outputs import CompletionOutput, RequestOutput


class Writer:
    """Writes one message."""

    def __init__(self, name: str, model: str, max_tokens: int) -> None:
        self.count = Count(details=True)
        self._name = name
        self._model = model
        self._max_tokens = max_tokens
        self._begun = False

    def message(self, output: RequestOutput) -> Message:
        """Return a message that has come as a whole."""
        completion = only_completion(output)
        self.count.begin(output)
        self.count.add(output)
        return self._message(completion.text, self._end(completion))

    def events(self, output: RequestOutput) -> bytes:
        """Return the events of what is new."""
        completion = only_completion(output)
        written: list[Event] = []
        if not self._begun:
            self._begun = True
            self.count.begin(output)
            written += [MessageStart(self._message(None, None)), BlockStart(0, TextBlock("")), Ping()]
        self.count.add(output)
        if completion.text:
            written.append(BlockDelta(0, TextDelta(completion.text)))
        if completion.finish_reason is not None:
            written += [BlockStop(0), MessageDelta(self._end(completion), self._usage()), MessageStop()]
        return b"".join([named_event(event.__struct_config__.tag, event) for event in written])  # type: ignore[arg-type]

    def _message(self, text: str | None, end: MessageEnd | None) -> Message:
        return Message(
            id=self._name,
            model=self._model,
            content=[] if text is None else [TextBlock(text)],
            stop_reason=None if end is None else end.stop_reason,
            stop_sequence=None if end is None else end.stop_sequence,
            usage=self._usage(),
        )

    def _usage(self) -> MessageUsage:
        count = self.count
        return MessageUsage(count.prompt - count.cached, count.completion, count.cached)

    def _end(self, completion: CompletionOutput) -> MessageEnd:
        reason: StopReason = "end_turn"
        if completion.finish_reason == "length":
            is_full = self.count.completion < self._max_tokens
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        elif isinstance(completion.stop_reason, str):
            return MessageEnd("stop_sequence", completion.stop_reason)
        return MessageEnd(reason, None)


def failed(error: HttpError) -> bytes:
    """Return how a stream ends in an error."""
    return b"event: error\ndata: " + error_body(error) + b"\n\n"
