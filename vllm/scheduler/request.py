"""One sequence as the scheduler knows it: how far its computation has come, and what it holds."""

from __future__ import annotations

import enum
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vllm.kv_cache.hashing import chain_root, extend_chain
from vllm.messages import EngineRequest, Sequence
from vllm.sampling_params import SamplingParams
from vllm.seeds import derived_seed

if TYPE_CHECKING:
    from vllm.scheduler.beam import BeamGroup


class Status(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """A sequence on its way: `num_computed` of its `num_tokens` tokens are in the cache, and it wants them all to be.

    Chunked prefill, a prefix hit, resuming after preemption and decoding are all this one idea.
    """

    source: EngineRequest
    params: SamplingParams
    index: int
    """Which of the request's outputs this is."""
    order: tuple[int, int, int]
    """(priority, arrival, index): who comes first."""
    tokens: list[int]
    """Prompt and output."""
    num_prompt: int
    num_computed: int = 0
    num_cached: int = 0
    """Prompt tokens found in the prefix cache at the first admission."""
    was_admitted: bool = False
    scheduled: float = 0.0
    """When it was first admitted, in seconds of the monotonic clock."""
    status: Status = Status.WAITING
    slot: int = -1
    tables: list[list[int]] = field(default_factory=list)
    """Blocks per cache group."""
    num_sent: list[int] = field(default_factory=list)
    """Per cache group, the table entries that the worker knows."""
    hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of its full blocks, as far as they were needed."""
    num_registered: int = 0
    """Leading blocks whose content has been offered to the prefix cache."""
    num_trimmed: int = 0
    """How many tokens were computed when it last gave back blocks that it no longer needed."""
    num_prompt_logprobs: int = 0
    """Prompt positions whose log-probabilities have been given out."""
    num_inflight: int = 0
    """Batches under way that compute tokens of it."""
    num_unknown: int = 0
    """Tokens that batches under way choose: they are its last ones, and only the worker knows them."""
    choice: int | None = None
    """A beam's chosen token, which the worker doesn't know yet."""
    leader: Request | None = None
    """The sibling whose prompt computation it waits for."""
    beam: BeamGroup | None = None
    has_candidates: bool = False
    """A beam that has done its part of the step and waits for the others."""

    @classmethod
    def of(cls, source: EngineRequest, index: int, order: tuple[int, int, int]) -> Request:
        """Return one of the sequences that a request asks for."""
        params = source.params
        if index > 0 and params.prompt_logprobs is not None:  # given once per request
            params = params.clone()
            params.prompt_logprobs = None
        return cls(source, params, index, order, list(source.token_ids), len(source.token_ids))

    def as_sequence(self) -> Sequence:
        """Return what the worker must know of it when it gets its slot."""
        source = self.source
        return Sequence(
            slot=self.slot,
            token_ids=list(self.tokens),
            num_prompt=self.num_prompt,
            params=self.params,
            eos_token_ids=source.eos_token_ids,
            seed=sibling_seed(source.seed, self.index),
            bad_words_ids=source.bad_words_ids,
            num_candidates=self.beam.num_candidates if self.beam else 0,
            pooling=source.pooling,
            token_types=source.token_types,
            media=source.media,
        )

    @property
    def id(self) -> str:
        return self.source.id

    @property
    def num_tokens(self) -> int:
        """Those included that are chosen and not yet known."""
        return len(self.tokens) + self.num_unknown

    @property
    def num_output(self) -> int:
        """Its output tokens, as far as they are known."""
        return len(self.tokens) - self.num_prompt

    @property
    def is_parked(self) -> bool:
        """Whether it waits for a sibling, or for batches under way, rather than for a place."""
        return self.leader is not None or self.has_candidates or self.num_inflight > 0

    @property
    def chooses(self) -> bool:
        """Whether its next token is chosen by the worker: it is no beam and doesn't pool."""
        return self.beam is None and self.source.pooling is None

    def extend_hashes(self, block_size: int, num_blocks: int) -> None:
        """Have `hashes` name the first blocks, as many as `num_blocks`."""
        root = b"" if self.hashes else self._root()
        media = self.source.media
        named = [(first, end, one.key) for one in media for first, end in one.spans]
        named += [(one.first, one.end, one.key) for one in media if one.length]
        extend_chain(self.hashes, root, self.tokens, block_size, num_blocks, named)

    def _root(self) -> bytes:
        """Return what the first block's hash is chained to: all of the prompt, where its first tokens see its last."""
        root = chain_root(self.source.cache_salt)
        if not any(one.whole for one in self.source.media):
            return root
        keys = b"".join(one.key for one in self.source.media)
        return chain_root(f"{root.hex()} {keys.hex()} {self.tokens[: self.num_prompt]}")

    def ends_unknown(self, max_model_len: int) -> bool:
        """Whether the last of its tokens that are not yet known is its last for certain."""
        max_tokens = self.params.max_tokens
        num_output = self.num_output + self.num_unknown
        is_full = max_tokens is not None and num_output >= max_tokens
        return self.num_unknown > 0 and (is_full or self.num_tokens >= max_model_len)

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.params.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt - 1

    @property
    def may_read_prefix_cache(self) -> bool:
        """Prompt log-probabilities need the hidden states of the whole prompt, which no cache holds; so may pooling."""
        params = self.source.pooling or self.params
        return not (self.wants_prompt_logprobs or params.skip_reading_prefix_cache)


def longest_of(source: EngineRequest, max_model_len: int) -> int:
    """Return how many tokens a sequence of a request may grow to."""
    if source.pooling is not None:
        return len(source.token_ids)
    max_tokens = source.beam.max_tokens if source.beam else source.params.max_tokens
    return max_model_len if max_tokens is None else min(max_model_len, len(source.token_ids) + max_tokens)


def sibling_seed(seed: int, index: int) -> int:
    """Return the seed of a request's output: the request's own for the first, unrelated ones for the others."""
    return seed if index == 0 else derived_seed(f"{seed}/{index}")


ORDER = operator.attrgetter("order")
"""The key by which queues of requests are sorted."""


def stop_cause(request: Request, token: int, max_model_len: int) -> tuple[str, int | None] | None:
    """Return (finish_reason, stop_reason) if the sequence ends with its newest token, else None."""
    params = request.params
    if request.num_output >= params.min_tokens:
        if not params.ignore_eos and token in request.source.eos_token_ids:
            return "stop", None
        if params.stop_token_ids and token in params.stop_token_ids:
            return "stop", token
    if params.max_tokens is not None and request.num_output >= params.max_tokens:
        return "length", None
    if len(request.tokens) >= max_model_len:
        return "length", None
    return None
