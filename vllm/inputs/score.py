"""How well texts go together: pairs of texts become requests, and what was pooled becomes scores.

a model of one class     query and document in one prompt ─▶ what it says of that class
a model that embeds      query, document apart ─▶ how alike their embeddings are, mostly the cosine of their angle
one that embeds tokens   query, document apart ─▶ MaxSim: for each token of the query, the most similar of the document's
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vllm.errors import RequestError
from vllm.inputs.chat import ChatOptions, ChatRenderer
from vllm.inputs.chat_template import load_chat_template
from vllm.inputs.media.item import MODALITIES, MediaItem
from vllm.inputs.media.messages import TYPES, find_media
from vllm.inputs.media.processor import MediaProcessor
from vllm.inputs.pooling import Pooled, with_text_before
from vllm.inputs.prepare import Preparer
from vllm.inputs.prompts import Prompt, parse_prompts
from vllm.messages import EngineRequest
from vllm.pooling_params import Pooling, PoolingParams, PoolingTask

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
_ROLES = [re.compile(rf"""['"]{role}['"]""") for role in ("query", "document")]


def score_task(pooling: Pooling) -> Literal["classify", "embed", "token_embed"]:
    """Return what a model does to score texts.  Raises RequestError if it can't."""
    if pooling.is_cross_encoder:
        return "classify"
    if "embed" in pooling.tasks:
        return "embed"
    if "token_embed" in pooling.tasks:
        return "token_embed"
    raise RequestError(
        f"this model can {', '.join(pooling.tasks)} with {pooling.num_labels} classes, and a score needs one class, or "
        "embeddings; use a reranker, or a model loaded with task='embed'",
        "task",
    )


@dataclass(frozen=True, slots=True)
class Scoring:
    """The requests that pairs of texts need, and which of them are each pair's."""

    requests: list[EngineRequest]
    pairs: list[tuple[int, ...]]
    """One position where both texts are in one prompt, else the query's and the document's."""
    similarity: Similarity = "cosine"

    def tokens(self, pair: int) -> list[int]:
        """Return the tokens of a pair, the query's first."""
        return [token for position in self.pairs[pair] for token in self.requests[position].token_ids]

    def scores(self, outputs: Sequence[Pooled]) -> list[float]:
        """Return each pair's score.  `outputs` are those of `requests`, in order."""
        found = ([outputs[position].outputs.data for position in pair] for pair in self.pairs)
        return [_score(data, self.similarity) for data in found]


def _score(found: list[np.ndarray], similarity: Similarity) -> float:
    """[1] -> what it is;  [N], [N] -> how alike they are;  [n, N], [m, N] -> MaxSim"""
    if len(found) == 1:
        return float(found[0][0])
    query, document = (data.astype(np.float64) for data in found)  # by itself: the bits don't depend on other pairs
    if query.ndim == 2:
        return float((query @ document.T).max(1).sum())
    if similarity == "euclidean":  # distances: the nearer, the higher
        return -float(np.linalg.norm(query - document))
    if similarity == "manhattan":
        return -float(np.abs(query - document).sum())
    dot = float(query @ document)
    return dot if similarity == "dot" else dot / max(float(np.linalg.norm(query) * np.linalg.norm(document)), 1e-12)


class Scorer:
    """Turns pairs of texts into requests of one model.  Raises RequestError for one that can't score."""

    def __init__(self, preparer: Preparer, pooling: Pooling, renderer: ChatRenderer) -> None:
        self.task: PoolingTask = score_task(pooling)
        self._preparer = preparer
        self._pooling = pooling
        self._renderer = renderer

    def prepare(
        self,
        queries: Sequence[Prompt],
        documents: Sequence[Prompt],
        params: PoolingParams,
        *,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        priority: int = 0,
    ) -> Scoring:
        """Return what is to run for one query and each document, or for as many queries as documents.

        `template` writes both texts into one prompt: it gets messages in the roles "query" and "document", the same as
        variables, and more `variables`.  Raises RequestError for numbers that don't fit, and as `prepare_pooling`.
        """
        if len(queries) not in (1, len(documents)) or not documents:
            raise RequestError(
                f"{len(queries)} texts can't be scored against {len(documents)}; give 1 and any number, or as many of both"
            )
        chosen = [0] * len(documents) if len(queries) == 1 else list(range(len(documents)))
        if self.task == "classify":
            both = [(_salted(queries[first], second), second) for first, second in zip(chosen, documents, strict=True)]
            prompts = self._pairs(both, params, template, variables or {})
            pairs: list[tuple[int, ...]] = [(position,) for position in range(len(prompts))]
        else:
            if template is not None:
                raise RequestError("a template is for models that read both texts in one prompt", "chat_template")
            prompts = with_text_before(queries, self._pooling.texts, "query")
            prompts += with_text_before(documents, self._pooling.texts, "document", "passage")
            pairs = [(first, len(queries) + second) for second, first in enumerate(chosen)]
        requests = self._preparer.prepare_pooling(
            prompts, params, task=self.task, pooling=self._pooling, priority=[priority] * len(prompts)
        )
        return Scoring(requests, pairs, self._pooling.texts.similarity)

    def _pairs(
        self,
        pairs: Sequence[tuple[Prompt, Prompt]],
        params: PoolingParams,
        template: str | None,
        variables: Mapping[str, Any],
    ) -> list[Prompt]:
        """Return a prompt for each pair, in the tokenizer's form of pairs or a template's."""
        for pair in pairs:
            if pair[0].media or pair[1].media:
                raise RequestError("this model reads two texts in one prompt; it scores no media", "prompt")
            if None in (pair[0].text, pair[1].text):
                raise RequestError("this model reads two texts in one prompt; give texts, not token ids", "prompt")
        template = template if template is not None else self._own_template()
        if template is None:
            return [replace(query, pair=document.text) for query, document in pairs]
        if params.truncate_prompt_tokens is not None:
            raise RequestError(
                "truncate_prompt_tokens would cut the end of what the template writes; shorten the texts instead",
                "truncate_prompt_tokens",
            )
        return [self._written(template, query, document.text or "", variables) for query, document in pairs]

    def _own_template(self) -> str | None:
        """Return the template that the user or the model has for pairs."""
        if self._renderer.default is not None:
            return load_chat_template(self._renderer.default)
        own = self._renderer.templates.get("default", "")
        return own if all(role.search(own) for role in _ROLES) else None

    def _written(self, template: str, query: Prompt, document: str, variables: Mapping[str, Any]) -> Prompt:
        texts = {"query": query.text or "", "document": document}
        messages = [{"role": role, "content": text} for role, text in texts.items()]
        options = ChatOptions(chat_template=template, chat_template_kwargs={**variables, **texts})
        return replace(query, text=self._renderer.render(messages, options), add_special_tokens=False)


def _salted(query: Prompt, document: Prompt) -> Prompt:
    """Return a query whose blocks are shared by those alone who know the salts of both texts."""
    if document.cache_salt in (None, query.cache_salt):
        return query
    salt = document.cache_salt
    if query.cache_salt is not None:
        salt = f"{len(query.cache_salt)}:{query.cache_salt}{salt}"  # the length keeps apart what joins to the same text
    return replace(query, cache_salt=salt)


def texts_of(data: Any, name: str, media: MediaProcessor | None = None) -> list[Prompt]:
    """Return what is to be scored, whether one or many are given: texts, prompts, or dicts with a text or with parts.

    `media` is the model's, if it takes any; what parts name by an address is fetched.  Raises RequestError, or TypeError for what
    is none of these.
    """
    is_many = isinstance(data, Sequence) and not isinstance(data, (str, bytes))
    if is_many and not data:
        raise RequestError(f"{name} is an empty list; give at least one text", name)
    if is_many and isinstance(data[0], int):
        return parse_prompts(data)
    return [_text_of(item, name, media) for item in (data if is_many else [data])]


def has_media(data: Any) -> bool:
    """Whether there are media among what is to be scored."""
    items = data if isinstance(data, list) else [data]
    contents = [item.get("content") for item in items if isinstance(item, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") in TYPES for part in parts)


def _text_of(item: Any, name: str, media: MediaProcessor | None) -> Prompt:
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        return Prompt(item["text"])
    if isinstance(item, Mapping) and "content" in item:
        parts = item["content"] if isinstance(item["content"], list) else [item["content"]]
        return _of_parts(parts, name, media)
    (prompt,) = parse_prompts([item])
    return prompt


def _of_parts(parts: list[Any], name: str, media: MediaProcessor | None) -> Prompt:
    """Return the prompt of parts, each a text or a medium."""
    items: list[MediaItem] = []
    if media is not None:
        (message,), sources = find_media([{"content": parts}])
        media.check([source.modality for source in sources], name)
        parts, items = message["content"], media.fetcher.now(sources, {}) if sources else []
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else part
        if media is not None and isinstance(part, Mapping) and part.get("type") in MODALITIES:
            text = media.placeholder(part["type"])
        if not isinstance(text, str):
            takes = "text only; give parts with a text" if media is None else "texts and media; give parts with either"
            raise RequestError(f"{name}: the model takes {takes}", name)
        texts += [text] if text else []
    if not texts and not items:
        raise RequestError(f"{name}: has no parts; give a text", name)
    return Prompt("\n".join(texts), media=tuple(items))
