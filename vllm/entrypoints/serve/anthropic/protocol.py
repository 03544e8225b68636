"""What the Messages API takes and gives, with what is not there refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from vllm.entrypoints.serve import protocol
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.protocol import Int, Positive

# Other blocks are refused in words of our own; the description shows what is taken.
_BlockType = Annotated[str, Meta(extra_json_schema={"enum": ["text", "image"]})]


class InputBlock(Struct):
    """A block of a message's content."""

    type: _BlockType
    text: str | None = None
    source: dict[str, Any] | None = None


class InputMessage(Struct):
    role: Literal["user", "assistant", "system"]
    content: str | list[InputBlock]


class CountTokensRequest(Struct, kw_only=True):
    """POST /v1/messages/count_tokens."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[InputBlock] | None = None
    thinking: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Positive
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    metadata: dict[str, Any] | None = None
    """Without effect."""


class TextBlock(Struct, tag="text"):
    text: str
    citations: None = None


class MessageUsage(Struct):
    """Tokens that a message took and has.  What came from the cache is not among `input_tokens`."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "model_context_window_exceeded"]


class Message(Struct, kw_only=True, tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[TextBlock]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


class InputTokens(Struct):
    """The answer of /v1/messages/count_tokens."""

    input_tokens: int


class MessageStart(Struct, tag="message_start"):
    message: Message


class BlockStart(Struct, tag="content_block_start"):
    index: int
    content_block: TextBlock


class Ping(Struct, tag="ping"):
    pass


class TextDelta(Struct, tag="text_delta"):
    text: str


class BlockDelta(Struct, tag="content_block_delta"):
    index: int
    delta: TextDelta


class BlockStop(Struct, tag="content_block_stop"):
    index: int


class MessageEnd(Struct):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, tag="message_delta"):
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(Struct, tag="message_stop"):
    pass


Event = MessageStart | BlockStart | Ping | BlockDelta | BlockStop | MessageDelta | MessageStop

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    431: "request_too_large",
    503: "overloaded_error",
}


class MessageError(Struct):
    type: str
    message: str


class MessageErrorReply(Struct, tag="error"):
    """What the endpoints of this API answer when they can't do what was asked."""

    error: MessageError


def error_body(error: HttpError) -> bytes:
    """Return an error as JSON."""
    kind = _TYPES.get(error.status, "api_error")
    return msgspec.json.encode(MessageErrorReply(MessageError(kind, error.message)))


_LATER = "not supported by this version; leave it out"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "container": ((), _LATER),
    "mcp_servers": (([],), _LATER),
    "context_management": (({}, {"edits": []}), _LATER),
    "output_format": ((), "structured output is not supported by this version; leave it out"),
    "speed": (("standard",), "there is one speed; leave it out"),
    "stop": ((), "the Messages API calls it stop_sequences"),
    "n": ((1,), "a message is one answer; leave it out"),
}
_IGNORED = frozenset(
    {"anthropic_version", "betas", "cache_control", "diagnostics", "inference_geo", "service_tier", "user_profile_id"}
)


def refusal(name: str, value: Any) -> str | None:
    """Return why a field can't be served, "" if it may be ignored, None if nobody knows it."""
    if name in _IGNORED:
        return ""
    if name not in _REFUSED:
        return protocol.refusal(name, value)
    harmless, reason = _REFUSED[name]
    return "" if value is None or value in harmless else reason
