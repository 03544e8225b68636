"""What a prompt may look like, and one shape for all of them.

`parse_prompts` takes whatever `LLM.generate` takes (a text, a list of token ids, a dict, or a list of such) and returns
`Prompt`s.  Every mistake that shows without a tokenizer is reported here, with the position and the value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypedDict

from vllm.errors import RequestError, did_you_mean
from vllm.inputs.media.given import items_of
from vllm.inputs.media.item import MediaItem


class TextPrompt(TypedDict, total=False):
    """A prompt as text.  `prompt` is required; the media fields belong to models that take media."""

    prompt: str
    multi_modal_data: Mapping[str, Any] | None
    mm_processor_kwargs: Mapping[str, Any] | None
    multi_modal_uuids: Mapping[str, Any] | None
    cache_salt: str | None


class TokensPrompt(TypedDict, total=False):
    """A prompt as token ids.  `prompt_token_ids` is required; `prompt` is its text, if known, and is only shown."""

    prompt_token_ids: list[int]
    prompt: str | None
    token_type_ids: list[int] | None
    multi_modal_data: Mapping[str, Any] | None
    mm_processor_kwargs: Mapping[str, Any] | None
    multi_modal_uuids: Mapping[str, Any] | None
    cache_salt: str | None


SingletonPrompt: TypeAlias = str | list[int] | TextPrompt | TokensPrompt


class ExplicitEncoderDecoderPrompt(TypedDict, total=False):
    """What a model's encoder reads, and how its decoder begins; without `decoder_prompt` as the model's config says."""

    encoder_prompt: SingletonPrompt
    decoder_prompt: SingletonPrompt | None


PromptType: TypeAlias = SingletonPrompt | ExplicitEncoderDecoderPrompt

_TEXT = ("prompt", "prompt_token_ids", "cache_salt")
_PAIR = frozenset(("encoder_prompt", "decoder_prompt"))
_KNOWN = (*_TEXT, "multi_modal_data", "mm_processor_kwargs", "multi_modal_uuids")
_FOREIGN = {
    "media_io_kwargs": "media are given as they are, not to be read from files; leave it out",
    "token_type_ids": "the model has no token types",
    "prompt_embeds": "prompts are text or token ids",
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt: `token_ids` if they were given (`text` is then only shown), else `text` to be tokenized."""

    text: str | None = None
    token_ids: list[int] | None = None
    cache_salt: str | None = None
    add_special_tokens: bool = True
    """Whether tokenizing adds the begin token and its like; a chat template has written them already."""
    pair: str | None = None
    """A second text, where two are judged together."""
    truncation_side: Literal["left", "right"] | None = None
    """Where a pooled text loses tokens if there are too many; None: where the tokenizer says."""
    media: tuple[MediaItem, ...] = ()
    """In the order of their places in the prompt, modality by modality."""
    processor_options: Mapping[str, Any] = field(default_factory=dict)
    """For the model's processor of media."""
    encoder: Prompt | None = None
    """What the model's encoder reads; the prompt itself is the decoder's then."""


def parse_prompts(
    prompts: PromptType | Sequence[PromptType] | None = None,
    prompt_token_ids: list[int] | list[list[int]] | None = None,
) -> list[Prompt]:
    """Return the prompts one by one, whether one or many were given.

    `prompt_token_ids` is the older keyword for token ids; with `prompts` beside it, those are the texts shown.
    Raises TypeError for what is not a prompt and RequestError for a prompt that can't be used.
    """
    if prompt_token_ids is not None:
        return _join(prompts, prompt_token_ids)
    if prompts is None:
        raise TypeError("no prompt: give a text, a list of token ids, a TextPrompt or TokensPrompt, or a list of these")
    return [_parse(prompt, position) for position, prompt in enumerate(_as_many(prompts))]


def _join(texts: Any, token_ids: Any) -> list[Prompt]:
    ids = [_parse(item, i) for i, item in enumerate(_as_many(token_ids, "prompt_token_ids"))]
    for position, prompt in enumerate(ids):
        if prompt.token_ids is None:
            raise TypeError(f"prompt_token_ids[{position}] must be a list of token ids")
    if texts is None:
        return ids
    shown = [texts] if isinstance(texts, str) else list(texts)
    if len(shown) != len(ids):
        raise RequestError(f"{len(shown)} prompts but {len(ids)} prompt_token_ids; give as many of both", "prompts")
    for position, text in enumerate(shown):
        if text is not None and not isinstance(text, str):
            raise TypeError(f"prompts[{position}] beside prompt_token_ids must be a text or None, got {_show(text)}")
    return [Prompt(text, prompt.token_ids) for text, prompt in zip(shown, ids, strict=True)]


def _as_many(value: Any, name: str = "prompts") -> list[Any]:
    """Return a list of single prompts.  A list of integers is one prompt; an empty list is none."""
    if isinstance(value, (str, Mapping)):
        return [value]
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise TypeError(
            f"{name} must be a text, a list of token ids, a TextPrompt or TokensPrompt, or a list of these; "
            f"got {_show(value)}"
        )
    if not value:
        raise RequestError(f"{name} is an empty list; give at least one prompt", name)
    return [value] if _is_int(value[0]) else list(value)


def _parse(prompt: Any, position: int) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt)
    if isinstance(prompt, Mapping):
        return _parse_dict(prompt, position)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
        return Prompt(token_ids=_token_ids(prompt, position))
    raise TypeError(f"prompt {position} must be a text, a list of token ids or a dict, got {_show(prompt)}")


def _parse_pair(prompt: Mapping[str, Any], position: int) -> Prompt:
    """Return the decoder's prompt with the encoder's."""
    for key in prompt:
        if key not in _PAIR:
            raise RequestError(
                f"prompt {position} has an unknown field {key!r} beside 'encoder_prompt'.{did_you_mean(str(key), _PAIR)}",
                str(key),
            )
    if prompt.get("encoder_prompt") is None:
        raise RequestError(f"prompt {position} has no 'encoder_prompt'", "encoder_prompt")
    encoder, given = _parse(prompt["encoder_prompt"], position), prompt.get("decoder_prompt")
    decoder = Prompt(text="") if given is None else _parse(given, position)
    if encoder.encoder or decoder.encoder:
        raise RequestError(f"prompt {position} has pairs of prompts within a pair", "encoder_prompt")
    return replace(decoder, encoder=encoder)


def _parse_dict(prompt: Mapping[str, Any], position: int) -> Prompt:
    if not _PAIR.isdisjoint(prompt):
        return _parse_pair(prompt, position)
    for key, value in prompt.items():
        if key in _FOREIGN and value is not None:
            raise RequestError(f"prompt {position} has {key!r}: {_FOREIGN[key]}", str(key))
        if key not in _KNOWN and key not in _FOREIGN:
            raise RequestError(
                f"prompt {position} has an unknown field {key!r}.{did_you_mean(str(key), _KNOWN)}", str(key)
            )
    text, ids, salt = (prompt.get(key) for key in _TEXT)
    if text is None and ids is None:
        raise RequestError(f"prompt {position} has neither 'prompt' nor 'prompt_token_ids'", "prompt")
    for key in ("prompt", "cache_salt"):
        if prompt.get(key) is not None and not isinstance(prompt[key], str):
            raise TypeError(f"prompt {position}: {key!r} must be a text, got {_show(prompt[key])}")
    if salt == "":
        raise RequestError(f"prompt {position}: 'cache_salt' is empty; leave it out or give a text", "cache_salt")
    options = prompt.get("mm_processor_kwargs") or {}
    if not isinstance(options, Mapping):
        raise TypeError(f"prompt {position}: 'mm_processor_kwargs' must be a dict, got {_show(options)}")
    media = items_of(prompt.get("multi_modal_data"), prompt.get("multi_modal_uuids"), f"prompt {position}")
    if ids is None:
        return Prompt(text=text, cache_salt=salt, media=media, processor_options=options)
    if isinstance(ids, (str, bytes, bytearray, Mapping)) or not isinstance(ids, Sequence):
        raise TypeError(f"prompt {position}: 'prompt_token_ids' must be a list of integers, got {_show(ids)}")
    token_ids = _token_ids(ids, position)
    return Prompt(text=text, token_ids=token_ids, cache_salt=salt, media=media, processor_options=options)


def _token_ids(ids: Sequence[Any], position: int) -> list[int]:
    if not ids:
        raise RequestError(f"prompt {position} is empty; give at least one token id", "prompt_token_ids")
    if all(type(token) is int for token in ids):
        return list(ids)
    for index, token in enumerate(ids):
        if not _is_int(token):
            raise TypeError(f"prompt {position} must hold token ids only; at index {index} it has {_show(token)}")
    return [int(token) for token in ids]


def _is_int(value: Any) -> bool:
    """True for int and numpy's integers, not for bool or float."""
    return not isinstance(value, (bool, str)) and hasattr(value, "__index__")


def _show(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
