"""The documented door to chat templates: load one from a file, or find a tokenizer's own."""

from __future__ import annotations

from typing import Any

from vllm.inputs.chat_template import load_chat_template

__all__ = ["load_chat_template", "resolve_hf_chat_template"]


def resolve_hf_chat_template(
    tokenizer: Any,
    chat_template: str | None = None,
    tools: list[dict[str, Any]] | None = None,
    *,
    model_config: object = None,
    trust_remote_code: bool | None = None,
) -> str | None:
    """Return the template that a transformers tokenizer would use, or None if it has none.

    `chat_template` may be a template, or the name of one of the tokenizer's.  `model_config` and `trust_remote_code`
    are accepted because callers pass them; nothing about a text model depends on them.
    """
    try:
        return tokenizer.get_chat_template(chat_template, tools=tools)
    except ValueError:
        return None
