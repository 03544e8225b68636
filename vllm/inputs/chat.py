"""From a conversation to a prompt: messages are checked, brought into the form the template takes, and rendered.

The text equals what transformers' `apply_chat_template(tokenize=False)` gives for the same messages.  It already holds
the special tokens, so that it is tokenized without adding any.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.errors import RequestError, did_you_mean
from vllm.inputs.chat_template import choose_template
from vllm.inputs.media.item import MODALITIES, MediaItem
from vllm.inputs.media.messages import find_media
from vllm.inputs.media.processor import MediaProcessor
from vllm.inputs.prompts import Prompt

Message = dict[str, Any]

_FORMATS = ("auto", "string", "openai")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_END_MARK = "<<the message goes on here>> "  # ends in a space: a template that trims the message shows itself


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations become prompts; the keyword arguments of `LLM.chat`."""

    chat_template: str | Path | None = None
    """A path, a template, or the name of one of the model's templates; None: the model's own."""
    chat_template_content_format: str = "auto"
    """The form of message contents: "string", "openai" (a list of parts), or "auto": what the template takes."""
    add_generation_prompt: bool = True
    """End with the opening of an assistant's message."""
    continue_final_message: bool = False
    """Leave the last message open, so that the model goes on with it."""
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """More variables for the template."""
    mm_processor_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options for the model's processor of media."""
    media_io_kwargs: dict[str, Any] = field(default_factory=dict)
    """Modality → how media are read, as {"video": {"num_frames": 16}}."""

    def __post_init__(self) -> None:
        if self.chat_template_content_format not in _FORMATS:
            name = self.chat_template_content_format
            raise RequestError(
                f"chat_template_content_format must be one of {', '.join(_FORMATS)}, got {name!r}."
                f"{did_you_mean(str(name), _FORMATS)}",
                "chat_template_content_format",
            )
        if self.add_generation_prompt and self.continue_final_message:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other: the last message goes on, or a "
                "new one begins; set add_generation_prompt=False",
                "continue_final_message",
            )
        for name in ("tools", "documents"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
                raise RequestError(f"{name} must be a list of dicts, got {value!r}", name)


class ChatRenderer:
    """The chat templates of one model, with its special tokens."""

    def __init__(
        self,
        model: str,
        templates: dict[str, str],
        special_tokens: dict[str, str],
        default: str | Path | None = None,
        media: MediaProcessor | None = None,
    ) -> None:
        """`default` takes the place of the model's own template; a request may still bring another.  `media`: None for a model
        that takes text only."""
        self.model = model
        self.templates = templates
        self.special_tokens = special_tokens
        self.default = default
        self.media = media

    def prompts(self, messages: Any, options: ChatOptions) -> list[Prompt]:
        """Return one prompt per conversation, whether one or many were given."""
        return [self._prompt(conversation, options) for conversation in parse_conversations(messages)]

    def _prompt(self, messages: list[Message], options: ChatOptions) -> Prompt:
        items: list[MediaItem] = []
        if self.media is not None:
            messages, sources = find_media(messages)
            self.media.check([source.modality for source in sources], "the conversation")
            items = self.media.fetcher.now(sources, options.media_io_kwargs) if sources else []
        text = self.render(messages, options)
        return Prompt(text, add_special_tokens=False, media=tuple(items), processor_options=options.mm_processor_kwargs)

    def render(self, messages: list[Message], options: ChatOptions) -> str:
        """Return the text of a conversation.  Raises RequestError for what the template doesn't take."""
        from vllm.inputs.jinja import content_format, run_template  # 0.1 s that an engine without chats can do without

        given = options.chat_template if options.chat_template is not None else self.default
        template = choose_template(self.model, self.templates, given, options.tools is not None)
        form = options.chat_template_content_format
        form = content_format(template) if form == "auto" else form
        messages = [_message(message, position, form, self._placeholder) for position, message in enumerate(messages)]
        final = _open_final(messages) if options.continue_final_message else None
        variables = {
            "messages": messages,
            "tools": _plain(options.tools, "tools", "tools"),
            "documents": _plain(options.documents, "documents", "documents"),
            "add_generation_prompt": options.add_generation_prompt,
        }
        field = "chat_template_kwargs"
        own = self.special_tokens | _plain(options.chat_template_kwargs, field, field)
        for name in own.keys() & variables.keys():
            raise RequestError(f"{field} can't set {name!r}; it has an argument of its own", field)
        text = run_template(template, own | variables)
        return text if final is None else _cut_final(text, final)

    def _placeholder(self, part: Mapping[str, Any]) -> str | None:
        """Return what stands for a part that is a medium's place, in a text; None if it is no such part."""
        kind = part.get("type")
        is_place = self.media is not None and kind in MODALITIES and len(part) == 1
        return self.media.placeholder(kind) if is_place and self.media is not None else None  # type: ignore[arg-type]


def parse_conversations(messages: Any) -> list[list[Message]]:
    """Return a list of conversations, each checked to be a list of messages with role and content."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of dicts with 'role' and 'content', got {messages!r}")
    if not messages:
        raise RequestError("messages is an empty list; give at least one message", "messages")
    many = isinstance(messages[0], Sequence) and not isinstance(messages[0], (str, bytes))
    conversations = list(messages) if many else [messages]
    checked = []
    for index, conversation in enumerate(conversations):
        if isinstance(conversation, (str, bytes, Mapping)) or not isinstance(conversation, Sequence):
            raise TypeError(f"conversation {index} must be a list of messages, got {conversation!r}")
        if not conversation:
            raise RequestError(f"conversation {index} is empty; give at least one message", "messages")
        checked.append([_checked(message, position) for position, message in enumerate(conversation)])
    return checked


def _checked(message: Any, position: int) -> Message:
    if hasattr(message, "model_dump"):  # a message object of a client library
        message = message.model_dump(exclude_none=True)
    if not isinstance(message, Mapping):
        raise TypeError(f"message {position} must be a dict with 'role' and 'content', got {message!r}")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise RequestError(f"message {position} has no role; give 'system', 'user', 'assistant' or 'tool'", "messages")
    content = message.get("content")
    if content is None and role != "assistant":
        raise RequestError(f"message {position} ({role}) has no content; give a text or a list of parts", "messages")
    if content is not None and not isinstance(content, (str, list, tuple)):
        raise RequestError(
            f"message {position}: content must be a text or a list of parts, got {type(content).__name__} {content!r}",
            "messages",
        )
    return dict(message)


Placeholder = Callable[[Mapping[str, Any]], str | None]


def _message(message: Message, position: int, form: str, placeholder: Placeholder) -> Message:
    """Return a plain copy of a message in the form the template takes: "string", "openai" or "any".

    `placeholder` gives the text of a part that is a medium's place.
    """
    fields = {key: value for key, value in message.items() if value is not None}
    content = fields.pop("content", None)
    result = {"role": fields.pop("role")}
    if content is not None:
        result["content"] = _content(content, position, form, placeholder)
    if "tool_calls" in fields:
        if not isinstance(fields["tool_calls"], (list, tuple)):
            raise RequestError(f"message {position}: tool_calls must be a list", "messages")
        fields["tool_calls"] = [_tool_call(call, position) for call in fields["tool_calls"]]
    result |= _plain(fields, f"message {position}")
    reasoning = next((result[name] for name in _REASONING_NAMES if name in result), None)
    if reasoning is not None:  # templates read it under either name
        result = {"thinking": reasoning, **result, "reasoning_content": reasoning}
    return result


def _content(content: Any, position: int, form: str, placeholder: Placeholder) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if form == "openai" else content
    places = [placeholder(part) if isinstance(part, Mapping) else None for part in content]
    parts = [
        dict(part) if place is not None else _text_part(part, position, index)
        for index, (part, place) in enumerate(zip(content, places, strict=True))
    ]
    if form == "string":  # media first, as models are trained
        texts = [part["text"] for part, place in zip(parts, places, strict=True) if place is None]
        return "\n".join([*(place for place in places if place is not None), *texts])
    return parts


def _text_part(part: Any, position: int, index: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    where = f"message {position}, part {index}"
    if not isinstance(part, Mapping):
        raise RequestError(f"{where}: must be a text or a dict with a type, got {part!r}", "messages")
    kind = part.get("type", "text" if "text" in part else None)
    if kind not in _TEXT_PARTS:
        raise RequestError(f"{where}: type {kind!r} is not supported; the model takes text only", "messages")
    if not isinstance(part.get("text"), str):
        raise RequestError(f"{where}: has no 'text'", "messages")
    return {**_plain(dict(part), where), "type": "text"}


def _tool_call(call: Any, position: int) -> Any:
    """Templates want a call's arguments as an object; the OpenAI API carries them as JSON text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    arguments = function["arguments"]
    try:
        parsed = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"message {position}: the arguments of tool call {function.get('name')!r} are not JSON ({error})",
            "messages",
        ) from None
    return {**call, "function": {**function, "arguments": parsed}}


def _plain(value: Any, where: str, field: str = "messages") -> Any:
    """Copy a value made of JSON types: templates are foreign code and get nothing with methods of its own.

    Raises RequestError about `field` for a value of another type, or one that is nested too deeply.
    """
    try:
        return _copied(value, where, field)
    except RecursionError:
        raise RequestError(
            f"{where} is nested too deeply; send fewer lists and dicts within each other", field
        ) from None


def _copied(value: Any, where: str, field: str) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # an enum, a numpy string
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _copied(item, where, field) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(item, where, field) for item in value]
    if hasattr(value, "model_dump"):
        return _copied(value.model_dump(), where, field)
    raise RequestError(f"{where} holds a {type(value).__name__}; use texts, numbers, lists and dicts only", field)


def _open_final(messages: list[Message]) -> str:
    """Put the mark at the end of the last message's text, and return that text."""
    content = messages[-1].get("content")
    if isinstance(content, str):
        messages[-1]["content"] = content + _END_MARK
        return content
    if content and "text" in content[-1]:
        text = content[-1]["text"]
        content[-1]["text"] = text + _END_MARK
        return text
    raise RequestError("continue_final_message: the last message has no content to go on with", "messages")


def _cut_final(rendered: str, final: str) -> str:
    end = rendered.rfind(_END_MARK.rstrip())
    if end < 0 or final.strip() not in rendered:
        raise RequestError(
            "continue_final_message: the chat template changes or leaves out the last message's text; "
            "use add_generation_prompt=True instead",
            "continue_final_message",
        )
    trimmed = not rendered.startswith(_END_MARK, end)
    return rendered[:end].rstrip() if trimmed else rendered[:end]
