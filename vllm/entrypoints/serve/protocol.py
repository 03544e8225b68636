"""What the OpenAI endpoints take: the fields of requests, with what is not there refused by name.

None stands for a field's default everywhere, as clients send it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

_MOST = 2**63 - 1
Int = Annotated[int, Meta(ge=-_MOST - 1, le=_MOST)]
"""An integer that a message to the engine can hold."""
Count = Annotated[int, Meta(ge=0, le=_MOST)]
Positive = Annotated[int, Meta(ge=1, le=_MOST)]


_PART = {"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}, "text": {"type": "string"}}}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"type": "string", "minLength": 1},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]},
    },
    "examples": [{"role": "user", "content": "Hello"}],
}
Messages = Annotated[list[dict[str, Any]], Meta(extra_json_schema={"items": _MESSAGE, "minItems": 1})]
"""A conversation.  What templates read of a message is theirs to say, so only what all have is described."""


# Ranges are described here, and checked by SamplingParams, which says better what is wrong.
Temperature = Annotated[float, Meta(extra_json_schema={"minimum": 0})]
Share = Annotated[float, Meta(extra_json_schema={"minimum": 0, "maximum": 1})]
Penalty = Annotated[float, Meta(extra_json_schema={"minimum": -2, "maximum": 2})]


class StreamOptions(Struct):
    """What a stream says beside its text."""

    include_usage: bool | None = None
    """End with a chunk that has the usage and no choice."""
    continuous_usage_stats: bool | None = None
    """Have the usage so far in every chunk."""


class SamplingRequest(Struct, kw_only=True):
    """The fields that completions and chats share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Int | None = None
    best_of: Int | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    top_k: Int | None = None
    min_p: Share | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    use_beam_search: bool | None = None
    stop_token_ids: list[Int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Int | None = None
    allowed_token_ids: list[Int] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Int | None = None
    add_special_tokens: bool | None = None
    priority: Int | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)


class CompletionRequest(SamplingRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    """A text, a list of token ids, or a list of these."""
    max_tokens: Count | None | UnsetType = UNSET
    """By default 16; null: as many as the context has room for; 0 with `echo` for the log-probabilities of a prompt."""
    logprobs: Int | bool | None = None
    """True is 1, False none at all."""
    echo: bool | None = None


class ChatFields(SamplingRequest, kw_only=True):
    """The fields of chats beside their messages."""

    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    """By default as many as the context has room for."""
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    reasoning_effort: str | None = None
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None


class ChatRequest(ChatFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Messages


class BatchChatRequest(ChatFields, kw_only=True):
    """POST /v1/chat/completions/batch: several conversations, answered alike."""

    messages: Annotated[list[Messages], Meta(extra_json_schema={"minItems": 1})]


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize, of a prompt or of messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize."""

    tokens: list[Count]
    model: str | None = None


class PromptTokensDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    """Tokens that a request took and made."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | UnsetType = UNSET


class Metrics(Struct):
    """How long a request took, in milliseconds."""

    time_to_first_token_ms: float | None
    queue_time_ms: float | None
    generation_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None


class PromptLogprob(Struct):
    """A token's log-probability at a position of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str | None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class CompletionLogprobs(Struct):
    """Log-probabilities of a completion, one entry per token."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length", "abort"] | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | None | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    metrics: Metrics | UnsetType = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]


class ChatMessage(Struct):
    role: str
    content: str | None
    refusal: str | None = None


class ChatChoice(Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "abort"] | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    """In the answer to several conversations; else the answer itself has them."""
    prompt_logprobs: PromptLogprobs | None | UnsetType = UNSET


class ChatCompletion(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | None | UnsetType = UNSET
    metrics: Metrics | UnsetType = UNSET


class Delta(Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "abort"] | None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class Tokens(Struct):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Struct):
    """The answer of /detokenize."""

    prompt: str


class ModelCard(Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vllm"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[Any] = []


class ModelList(Struct):
    data: list[ModelCard]
    object: Literal["list"] = "list"


# Fields of features that are not there, with the values that mean "not used".
_TEXT_ONLY = "the model takes and gives text only"
_NO_STRUCTURE = "structured output is not supported by this version; leave it out"
_NO_TOOLS = "calling functions is not supported by this version; leave it out"
_LATER = "not supported by this version; leave it out"
_REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "the model can't fill in before a suffix; leave it out"),
    "functions": (([],), _NO_TOOLS),
    "function_call": (("none",), _NO_TOOLS),
    "modalities": ((["text"],), _TEXT_ONLY),
    "audio": ((), _TEXT_ONLY),
    "prompt_embeds": (([],), "prompts are texts or token ids"),
    "web_search_options": (({},), "the server searches nothing"),
    "structured_outputs": (({},), _NO_STRUCTURE),
    "guided_json": ((), _NO_STRUCTURE),
    "guided_regex": ((), _NO_STRUCTURE),
    "guided_choice": (([],), _NO_STRUCTURE),
    "guided_grammar": ((), _NO_STRUCTURE),
    "response_format": (({"type": "text"},), _NO_STRUCTURE),
    "kv_transfer_params": (({},), _LATER),
    "thinking_token_budget": ((), _LATER),
    "repetition_detection": ((), _LATER),
    "logprob_token_ids": (([],), _LATER),
    "stream_interval": ((1,), _LATER),
    "truncation_side": (("left",), "prompts are truncated on the left only"),
    "logits_processors": (([],), "processors are code, which requests may not bring"),
}

# Fields that change nothing about the answer.
_IGNORED = frozenset(
    {
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
        "verbosity",
        "prediction",
        "include_reasoning",
        "session_id",
        "vllm_xargs",
        "guided_decoding_backend",
        "guided_whitespace_pattern",
        "return_prompt_text",
        "prompt_logprob_start",
    }
)


def refusal(name: str, value: Any) -> str | None:
    """Return why a field can't be served, "" if it may be ignored, None if nobody knows it."""
    if name in _IGNORED:
        return ""
    if name not in _REFUSED:
        return None
    harmless, reason = _REFUSED[name]
    return "" if value is None or value is False or value in harmless else reason
