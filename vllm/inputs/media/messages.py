"""The media of a conversation: found in the parts of messages, and in their places what a chat template knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import RequestError
from vllm.inputs.media.fetch import Source
from vllm.inputs.media.given import items_of
from vllm.messages import Modality

MAX_MEDIA = 256
"""Of a conversation, before any is fetched"""
_URLS: Mapping[str, Modality] = {
    "image_url": "image",
    "input_image": "image",
    "video_url": "video",
    "audio_url": "audio",
}
"""Type of a part with an address → what it is"""
_EMBEDDINGS: Mapping[str, Modality] = {"image_embeds": "image", "audio_embeds": "audio"}
_OBJECTS: Mapping[str, Modality] = {"image_pil": "image", "image": "image", "video": "video", "audio": "audio"}
TYPES = frozenset((*_URLS, *_EMBEDDINGS, *_OBJECTS, "input_audio"))
"""All types of parts that are media"""


def find_media(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Source]]:
    """Return the messages with a plain part, as {"type": "image"}, in the place of each medium, and the media in order.

    Raises RequestError for a part that lacks what its type promises.
    """
    sources: list[Source] = []
    found = []
    for position, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = []
            for index, part in enumerate(content):
                source = _source(part, f"message {position}, part {index}")
                parts.append(part if source is None else {"type": source.modality})
                sources += [] if source is None else [source]
            message = {**message, "content": parts}
        found.append(message)
    if len(sources) > MAX_MEDIA:
        raise RequestError(f"messages have {len(sources)} media, more than {MAX_MEDIA}", "messages")
    return found, sources


def _source(part: Any, where: str) -> Source | None:
    """Return the medium of a part; None for one of text, or of a type that nobody knows."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in TYPES:
        return None
    uuid = part.get("uuid")
    if kind in _URLS:
        value = part.get("image_url" if kind == "input_image" else kind)
        url = value.get("url") if isinstance(value, Mapping) else value
        return Source(_URLS[kind], url=_text(url, where, kind), uuid=uuid, where=where)
    if kind in _EMBEDDINGS:
        return Source(_EMBEDDINGS[kind], embedding=_text(part.get(kind), where, kind), uuid=uuid, where=where)
    if kind == "input_audio":
        value = part.get(kind)
        data = value.get("data") if isinstance(value, Mapping) else None
        return Source("audio", url="data:;base64," + _text(data, where, "input_audio.data"), uuid=uuid, where=where)
    modality = _OBJECTS[kind]
    for name in ("url", "path"):
        if part.get(name) is not None:
            address = _text(part[name], where, name)
            return Source(modality, url=address if name == "url" else f"file://{address}", uuid=uuid, where=where)
    value = part.get(kind)
    if value is None:
        raise RequestError(f"{where}: has no {kind!r}", "messages")
    if isinstance(value, str):
        return Source(modality, url=value, uuid=uuid, where=where)
    (item,) = items_of({modality: [value]}, None, where)
    return Source(modality, given=item.data, uuid=uuid, where=where)


def _text(value: Any, where: str, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{where}: has no {name!r} that is a text", "messages")
    return value
