"""From a request's messages to the text that the model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.entrypoints.serve.context import LARGE, Call
from vllm.entrypoints.serve.sandbox import render_apart
from vllm.errors import RequestError
from vllm.inputs.chat import ChatOptions, ChatRenderer, Message, parse_conversations
from vllm.inputs.chat_template import choose_template
from vllm.inputs.media.item import MediaItem
from vllm.inputs.media.messages import find_media
from vllm.inputs.prompts import Prompt


async def render(call: Call, messages: list[Message]) -> Prompt:
    """Return the prompt of a conversation, with the options that the call's body has.  Raises RequestError."""
    body, renderer = call.body, call.model.renderer
    items: list[MediaItem] = []
    if renderer.media is not None:
        messages, sources = find_media(messages)
        if sources:
            renderer.media.check([source.modality for source in sources], "messages")
            items = await renderer.media.fetcher.fetch(sources, _dict(body, "media_io_kwargs"))
    elif wanted := [name for name in ("mm_processor_kwargs", "media_io_kwargs") if _dict(body, name)]:
        raise RequestError(f"{wanted[0]}: the model takes and gives text only", wanted[0])
    text = await _text(call, messages, LARGE if items else len(call.raw))
    return Prompt(
        text, add_special_tokens=False, media=tuple(items), processor_options=_dict(body, "mm_processor_kwargs")
    )


def _dict(body: Any, name: str) -> dict[str, Any]:
    return getattr(body, name, None) or {}


def size_of(call: Call, prompts: Sequence[Prompt]) -> int:
    """Return how large the work on prompts is: media are prepared, and their processor is loaded, in a thread."""
    return LARGE if any(prompt.media for prompt in prompts) else len(call.raw)


async def _text(call: Call, messages: list[Message], size: int) -> str:
    body, renderer = call.body, call.model.renderer
    continues = bool(body.continue_final_message)
    given = body.add_generation_prompt
    variables: dict[str, Any] = dict(body.chat_template_kwargs or {})
    effort = getattr(body, "reasoning_effort", None)
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    options = ChatOptions(
        chat_template=_template(call),
        chat_template_content_format=call.settings.chat_template_content_format,
        add_generation_prompt=not continues if given is None else given,
        continue_final_message=continues,
        documents=getattr(body, "documents", None),
        chat_template_kwargs=variables,
    )
    if options.chat_template is not None and options.chat_template not in renderer.templates:
        return await render_apart(call.server.sandboxes, renderer, messages, options)
    (conversation,) = parse_conversations(messages)
    return await call.server.work(size, renderer.render, conversation, options)


def _template(call: Call) -> str | None:
    """Return the template that a request brings, if it may bring one; it may always name one of the model's."""
    given = call.body.chat_template
    if given is None or given in call.model.renderer.templates:
        return given
    if not call.settings.trust_request_chat_template:
        raise RequestError(
            "chat_template: this server takes no templates from requests; start it with --trust-request-chat-template",
            "chat_template",
        )
    if not any(mark in given for mark in "{}\n"):  # it would be read as a path
        raise RequestError("chat_template must be a Jinja template, not a path", "chat_template")
    return given


def check_template(renderer: ChatRenderer) -> None:
    """Raise ConfigError or ModelError if the template of chats can't be read; a model may have none."""
    from vllm.inputs.jinja import compile_template

    if renderer.default is not None or renderer.templates:
        compile_template(choose_template(renderer.model, renderer.templates, renderer.default, has_tools=False))
