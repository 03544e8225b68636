"""What the Responses API takes and gives, with what is not there refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

from vllm.entrypoints.serve import protocol
from vllm.entrypoints.serve.protocol import Count, Int, Positive, TokenLogprob

LOGPROBS = "message.output_text.logprobs"
"""What `include` asks for log-probabilities with."""

Include = Literal[
    "message.output_text.logprobs",
    # Of items that the server never makes, so that there is nothing to include:
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Value = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[str, Value], Meta(max_length=16)]
"""Keys have at most 64 characters."""
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]

# What is no message of text is refused in words of our own; the description shows what is taken.
_ItemType = Annotated[str, Meta(extra_json_schema={"enum": ["message"]})]
_PartType = Annotated[
    str, Meta(extra_json_schema={"enum": ["input_text", "output_text", "text", "refusal", "input_image"]})
]
_Role = Annotated[str, Meta(extra_json_schema={"enum": ["user", "assistant", "system", "developer"]})]


class InputPart(Struct):
    """A part of a message's content."""

    type: _PartType
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None


class InputItem(Struct):
    """A message of the input."""

    type: _ItemType | None = None
    role: _Role | None = None
    content: str | list[InputPart] | None = None


class TextOptions(Struct):
    """How the text is to be."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None
    """Without effect: models here have no such knob."""


class ResponsesRequest(Struct, kw_only=True):
    """POST /v1/responses."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Positive | None = None
    """By default as many as the context has room for."""
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Count | None = None
    include: list[Include] | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    """auto: leave out the oldest messages of a conversation that is too long."""
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    text: TextOptions | None = None
    reasoning: dict[str, str | None] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    user: str | None = None
    # Beyond the API:
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Int | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    priority: Int | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class OutputText(Struct, tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class OutputMessage(Struct, tag="message"):
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class InputTokensDetails(Struct):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct):
    reasoning_tokens: int = 0


class ResponseUsage(Struct):
    """Tokens that a response took and has."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseError(Struct):
    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(Struct):
    reason: Literal["max_output_tokens"]


class ReasoningShown(Struct):
    effort: str | None = None
    summary: None = None


class Response(Struct, kw_only=True):
    """A response, finished or not."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningShown
    store: bool
    temperature: float
    text: TextOptions
    tool_choice: Literal["none", "auto"]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None = None
    user: str | None


class LifeEvent(Struct):
    """response.created, .in_progress, .completed, .incomplete, .failed."""

    type: str
    response: Response | Raw
    sequence_number: int


class ItemEvent(Struct):
    """response.output_item.added, .done."""

    type: str
    output_index: int
    item: OutputMessage
    sequence_number: int


class PartEvent(Struct):
    """response.content_part.added, .done."""

    type: str
    item_id: str
    output_index: int
    content_index: int
    part: OutputText
    sequence_number: int


class DeltaEvent(Struct):
    """response.output_text.delta."""

    type: str
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: list[TokenLogprob]
    sequence_number: int


class TextEvent(Struct):
    """response.output_text.done."""

    type: str
    item_id: str
    output_index: int
    content_index: int
    text: str
    logprobs: list[TokenLogprob]
    sequence_number: int


class ErrorEvent(Struct, kw_only=True):
    """How a stream ends that can't go on, though its response may."""

    type: str = "error"
    code: str
    message: str
    param: str | None = None
    sequence_number: int


_LATER = "not supported by this version; leave it out"
_ONE = "a response is one answer; leave it out"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "conversation": ((), "the server keeps no conversations; use previous_response_id"),
    "prompt": ((), "the server keeps no prompt templates; send input and instructions"),
    "background_options": (({}, {"completion_window": "soonest"}), _LATER),
    "context_management": (([],), _LATER),
    "moderation": ((), _LATER),
    "image": (({},), "the model takes and gives text only"),
    "messages": ((), "the Responses API calls it input"),
    "max_tokens": ((), "the Responses API calls it max_output_tokens"),
    "max_completion_tokens": ((), "the Responses API calls it max_output_tokens"),
    "response_format": ((), "the Responses API calls it text.format"),
    "reasoning_effort": ((), "the Responses API calls it reasoning.effort"),
    "logprobs": ((), f'the Responses API asks for them with include=["{LOGPROBS}"]'),
    "n": ((1,), _ONE),
    "best_of": ((1,), _ONE),
    "use_beam_search": ((), _ONE),
    "prompt_logprobs": ((), _LATER),
}
_IGNORED = frozenset({"max_tool_calls", "prompt_cache_options", "client_metadata"})


def refusal(name: str, value: Any) -> str | None:
    """Return why a field can't be served, "" if it may be ignored, None if nobody knows it."""
    if name in _IGNORED:
        return ""
    if name not in _REFUSED:
        return protocol.refusal(name, value)
    harmless, reason = _REFUSED[name]
    return "" if value is None or value is False or value in harmless else reason
