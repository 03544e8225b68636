"""What prompts that are pooled need beside their tokens: settled parameters, texts that go before them, the right length.

too long ─┬─ truncate_prompt_tokens ─▶ cut, special tokens kept
          └─ max_embed_len ──────────▶ pieces, whose embeddings are averaged
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from vllm.errors import RequestError
from vllm.inputs.prompts import Prompt
from vllm.inputs.tokenizer import Encoding, Side
from vllm.messages import EngineRequest
from vllm.outputs import PoolingOutput, PoolingRequestOutput
from vllm.pooling_params import PooledTexts, Pooling, PoolingParams, PoolingTask

Pooled = PoolingRequestOutput[PoolingOutput]

MADE_FOR: dict[PoolingTask, str] = {
    "embed": "embed",
    "token_embed": "embed",
    "classify": "classify",
    "token_classify": "reward",
}
"""What a model is loaded as (`task=`), to do each task."""


def settle(params: PoolingParams, task: PoolingTask | None, pooling: Pooling) -> PoolingParams:
    """Return parameters with the task filled in and everything checked.

    `task` is what the caller is for; None: what the parameters say, else what the model is for.  Raises RequestError for
    what this model can't do.
    """
    if not isinstance(params, PoolingParams):
        raise TypeError(f"pooling_params must be PoolingParams, got {params!r}")
    if task is not None and params.task not in (None, task):
        raise RequestError(f"task={params.task!r} of the parameters contradicts {task!r}; leave it out", "task")
    settled = params.clone()
    settled.task = task or params.task or pooling.tasks[0]
    check_task(settled.task, pooling)
    if params.dimensions is not None:
        _check_dimensions(params.dimensions, settled.task, pooling)
    if pooling.keeps_all(settled):
        settled.skip_reading_prefix_cache = True
    return settled


def check_task(task: PoolingTask, pooling: Pooling) -> None:
    """Raise RequestError if the model can't do it."""
    if task not in pooling.tasks:
        raise RequestError(
            f"this model can {', '.join(pooling.tasks)}, not {task}; use one that was made for it, loaded with "
            f"task={MADE_FOR.get(task, task)!r}",
            "task",
        )


def _check_dimensions(dimensions: int, task: PoolingTask, pooling: Pooling) -> None:
    if not task.endswith("embed"):
        raise RequestError(f"dimensions={dimensions} is for embeddings, and the task is {task}", "dimensions")
    if pooling.width and dimensions > pooling.width:
        raise RequestError(f"dimensions={dimensions} is more than the {pooling.width} that there are", "dimensions")
    allowed = pooling.matryoshka
    if isinstance(allowed, tuple):
        if dimensions not in allowed:
            lengths = ", ".join(map(str, allowed))
            raise RequestError(f"dimensions={dimensions}: the model was trained for {lengths}", "dimensions")
    elif not allowed:
        raise RequestError(
            f"dimensions={dimensions}: nothing says that the model was trained for shorter embeddings; leave it out, or "
            'load the model with hf_overrides={"is_matryoshka": True}',
            "dimensions",
        )


def with_text_before(prompts: Sequence[Prompt], texts: PooledTexts, *names: str) -> list[Prompt]:
    """Put before texts what the model wants there: the first of `names` that it has, else its default, if any."""
    known = dict(texts.prompts)
    name = next((name for name in names if name in known), texts.default_prompt)
    if name is None:
        return list(prompts)
    before = named_text(name, texts)
    return [p if p.text is None else dataclasses.replace(p, text=before + p.text) for p in prompts]


def named_text(name: str, texts: PooledTexts) -> str:
    """Return the text that goes before a prompt, by its name.  Raises RequestError if the model has none of that name."""
    known = dict(texts.prompts)
    if name not in known:
        shown = ", ".join(known) or "none at all"
        raise RequestError(f"the model has no prompt called {name!r}; it has {shown}", "prompt_name")
    return known[name]


class Tokens(NamedTuple):
    """A prompt's tokens, and which of a pair of texts each is of."""

    ids: list[int]
    types: list[int] = []


def tokens_of(encoding: Encoding, keep: int | None, side: Side) -> Tokens:
    """Return a text's or a pair's tokens, at most `keep` of them.

    What was added around texts stays; of a pair the longer text is cut first.  Raises RequestError if there is no room.
    """
    ids, types = encoding.ids, encoding.type_ids
    if keep is None or len(ids) <= keep:
        return Tokens(ids, types)
    places: tuple[list[int], list[int]] = ([], [])  # of each text's tokens
    chosen: list[int] = []
    for place, source in enumerate(encoding.sequence_ids):
        (chosen if source is None else places[source]).append(place)
    room = keep - len(chosen)
    if room < 1:
        raise RequestError(
            f"truncate_prompt_tokens={keep} leaves no room for the text beside {len(chosen)} special tokens",
            "truncate_prompt_tokens",
        )
    for text, length in zip(places, _shares(len(places[0]), len(places[1]), room), strict=True):
        chosen += text[:length] if side == "right" else text[len(text) - length :]
    chosen.sort()
    return Tokens([ids[place] for place in chosen], [types[place] for place in chosen])


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts fit into the room: the shorter one whole, if that leaves it half or more."""
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def cut_ids(token_ids: list[int], keep: int | None, side: Side) -> Tokens:
    """Return at most `keep` of a prompt's tokens, of which nothing else is known."""
    if keep is None or len(token_ids) <= keep:
        return Tokens(token_ids)
    return Tokens(token_ids[:keep] if side == "right" else token_ids[-keep:])


class Pieces:
    """Requests in pieces of what the model takes at a time, and what was pooled put together again."""

    def __init__(self, requests: Sequence[EngineRequest], length: int, pooling: Pooling) -> None:
        """`length` is the model's context in tokens."""
        self._requests = requests
        self._pooling = pooling
        self._cuts = [_pieces(request, length) for request in requests]
        self.requests = [piece for pieces in self._cuts for piece in pieces]
        """Those to run, in order."""

    def join(self, outputs: Sequence[Pooled]) -> list[Pooled]:
        """Return one result per request.  `outputs` are those of `requests`, in order."""
        left = iter(outputs)
        return [
            self._joined(request, [next(left) for _ in pieces])
            for request, pieces in zip(self._requests, self._cuts, strict=True)
        ]

    def _joined(self, request: EngineRequest, outputs: list[Pooled]) -> Pooled:
        """Return the mean of embeddings, each weighted by its number of tokens."""
        if len(outputs) == 1:
            return outputs[0]
        error = next((output.error for output in outputs if output.error is not None), None)
        data = np.zeros(0, np.float32)
        if error is None:
            weights = [len(output.prompt_token_ids) for output in outputs]
            mean = np.average(np.stack([output.outputs.data for output in outputs]).astype(np.float64), 0, weights)
            wanted = None if request.pooling is None else request.pooling.activates
            if self._pooling.normalize if wanted is None else wanted:
                mean /= max(float(np.linalg.norm(mean)), 1e-12)
            data = mean.astype(np.float32)
        cached = sum(output.num_cached_tokens for output in outputs)
        return PoolingRequestOutput(
            request.id, PoolingOutput(data), request.token_ids, num_cached_tokens=cached, error=error
        )


def _pieces(request: EngineRequest, length: int) -> list[EngineRequest]:
    tokens = request.token_ids
    if len(tokens) <= length:
        return [request]
    return [
        msgspec.structs.replace(request, id=f"{request.id}/{number}", token_ids=tokens[first : first + length])
        for number, first in enumerate(range(0, len(tokens), length))
    ]
