"""From a prompt's placeholders to the tokens that keep the places of its media.

"Look: <image> Nice."   ──filled──▶   "Look: ▢▢▢▢ Nice."   ──placed──▶   the image: tokens 2 to 6
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vllm.config import MediaConfig
from vllm.errors import ModelError, RequestError
from vllm.inputs.media.item import MediaItem, Prepared
from vllm.inputs.media.tensors import array_of
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import Media, Modality

NUMBER = "\ue000"
"""In a stand-in: the number of its medium in the prompt, from 0"""


def filled(
    text: str, items: Sequence[MediaItem], prepared: Sequence[Prepared], marks: Mapping[Modality, str], where: str
) -> str:
    """Put the stand-ins in the places of the placeholders, which `marks` names.  Raises RequestError."""
    return "".join(pieces(text, items, prepared, marks, where))


def respelled(text: str, pattern: str, mark: str, where: str) -> str:
    """Put a mark in the place of what a pattern finds; its group, if it has one, counts from 1.  Raises RequestError."""
    numbers = [int(number) for number in re.findall(pattern, text)] if re.compile(pattern).groups else []
    if numbers != list(range(1, len(numbers) + 1)):
        raise RequestError(
            f"{where}: its placeholders have the numbers {', '.join(map(str, numbers))}; number them from 1 in their order",
            "prompt",
        )
    return re.sub(pattern, mark, text)


def led(text: str, lead: str, marks: Sequence[str]) -> str:
    """Move the marks of media to a text's front, behind what it begins with; a text may lack them."""
    rest = text.removeprefix(lead)
    if all(mark not in text for mark in marks):
        return lead + "".join(marks) + rest
    found = re.findall("|".join(re.escape(mark) for mark in set(marks)), rest)
    for mark in set(marks):
        rest = re.sub(re.escape(mark) + r"\n?", "", rest)
    return lead + "".join(found) + rest


def pieces(
    text: str, items: Sequence[MediaItem], prepared: Sequence[Prepared], marks: Mapping[Modality, str], where: str
) -> list[str]:
    """Return a text's parts before, between and after its placeholders, and the stand-ins between them."""
    queues = _queues(items, prepared)
    parts, at = [], 0
    while True:
        found = [(text.find(mark, at), modality) for modality, mark in marks.items() if text.find(mark, at) >= 0]
        if not found:
            break
        start, modality = min(found)
        if not queues[modality]:
            raise _wrong_count(where, modality, marks[modality], text.count(marks[modality]), items)
        number = sum(item.modality == modality for item in items) - len(queues[modality])
        parts += [text[at:start], queues[modality].pop(0).stand_in.replace(NUMBER, str(number))]
        at = start + len(marks[modality])
    for modality, left in queues.items():
        if left:
            raise _wrong_count(where, modality, marks[modality], text.count(marks[modality]), items)
    return [*parts, text[at:]]


def spliced(
    token_ids: list[int],
    items: Sequence[MediaItem],
    prepared: Sequence[Prepared],
    marks: Mapping[Modality, str],
    tokenizer: Tokenizer,
    where: str,
) -> list[int]:
    """Put the stand-ins' tokens in the places of the placeholders' tokens.  Raises RequestError."""
    queues = _queues(items, prepared)
    spelled = {modality: tokenizer.encode(mark, False) for modality, mark in marks.items()}
    tokens: list[int] = []
    at = 0
    while at < len(token_ids):
        here = [m for m, mark in spelled.items() if token_ids[at : at + len(mark)] == mark]
        if not here:
            tokens.append(token_ids[at])
            at += 1
            continue
        if not queues[here[0]]:
            count = token_ids.count(spelled[here[0]][0])
            raise _wrong_count(where, here[0], marks[here[0]], count, items)
        number = sum(item.modality == here[0] for item in items) - len(queues[here[0]])
        tokens += tokenizer.encode(queues[here[0]].pop(0).stand_in.replace(NUMBER, str(number)), False)
        at += len(spelled[here[0]])
    for modality, left in queues.items():
        if left:
            raise _wrong_count(where, modality, marks[modality], len(items) - len(left), items)
    return tokens


def placed(
    tokens: list[int],
    items: Sequence[MediaItem],
    prepared: Sequence[Prepared],
    config: MediaConfig,
    tokenizer: Tokenizer,
    where: str,
    words: Sequence[int] = (),
) -> list[Media]:
    """Find the runs of tokens that each item's embeddings belong to.  Raises RequestError.

    `words`: the tokens of media, and what stands around them, where all of a prompt's see each other.
    """
    every, media = np.array(tokens), []
    within = _runs(np.flatnonzero(np.isin(every, words))) if words else []
    has_pictures = any(item.modality == "image" for item in items)
    for modality, token in config.token_ids.items():
        kinds = (token, *config.beside)
        places = np.flatnonzero(np.isin(every, kinds))
        used = 0
        for item, done in zip(items, prepared, strict=True):
            if item.modality == modality:
                count = int(np.isin(tokenizer.encode(done.stand_in, False), kinds).sum())
                here = places[used : used + count]
                features = done.features | ({"input_ids": array_of(every[here])} if config.beside else {})
                key = done.key
                if config.notices and modality == "audio" and has_pictures:
                    key, features = _key_beside(key), features | {config.notices: array_of(np.zeros(0))}
                whole = (0, len(tokens)) if config.whole_prompt else None
                if within:
                    whole = (within[0][0], within[-1][1])
                media.append(Media(modality, key, _runs(here), features, whole, config.states, within))
                used += count
        if used != len(places):
            raise RequestError(
                f"{where} has {len(places)} tokens {token} for {modality} media of {used}; leave those out that "
                "belong to none",
                "prompt",
            )
    return sorted(media, key=lambda one: one.spans[0])


def _queues(items: Sequence[MediaItem], prepared: Sequence[Prepared]) -> dict[Modality, list[Prepared]]:
    queues: dict[Modality, list[Prepared]] = {}
    for item, done in zip(items, prepared, strict=True):
        queues.setdefault(item.modality, []).append(done)
    return queues


def _wrong_count(where: str, modality: Modality, mark: str, count: int, items: Sequence[MediaItem]) -> RequestError:
    given = sum(item.modality == modality for item in items)
    return RequestError(
        f"{where} has {count} placeholders {mark!r} and {given} {modality} items; give one placeholder for each",
        "prompt",
    )


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Return the runs [first, end) of consecutive positions."""
    if not len(places):
        raise ModelError("the model's processor made no place for a medium; its tokenizer and its config do not fit")
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(places, breaks)]


def _key_beside(key: bytes) -> bytes:
    """Return the name of a sound that is heard beside pictures."""
    return hashlib.sha256(key + b"beside pictures").digest()
