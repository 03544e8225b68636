"""The types that cross a border between rooms, and later between processes.

    inputs ── EngineRequest ──▶ scheduler ── Batch ──▶ worker ── StepOutput ──▶ scheduler ── Event ──▶ output side

All are msgspec structs: a connection between processes encodes them as they are, and never with pickle.
"""

from __future__ import annotations

import sys
from array import array
from typing import Literal

from msgspec import Struct

from vllm.pooling_params import PoolingParams
from vllm.sampling_params import BeamSearchParams, SamplingParams

Modality = Literal["image", "video", "audio", "text"]


class Array(Struct, array_like=True):
    """A tensor on its way."""

    dtype: str  # as torch calls it
    shape: tuple[int, ...]
    data: bytes


Prompts = Literal["pieces", "whole", "bare", "apart", "framed"]
"""How a processor fills prompts in.  pieces: what it makes of one placeholder takes that one's place; whole: it must see all of a
text, since what a medium becomes depends on the others; bare: and the text has no placeholders, since it puts media around it;
apart: a prompt is a text or a medium; framed: and it writes something around either."""


class Media(Struct, array_like=True):
    """An image, a video or a sound of a prompt, as the model's tower takes it, or what an encoder beside the decoder reads."""

    modality: Modality
    key: bytes  # names its content, and how that was prepared
    spans: list[tuple[int, int]]  # runs [first, end) of the prompt's positions that its embeddings belong to, in order
    features: dict[str, Array]
    whole: tuple[int, int] | None = None  # the run of tokens that see each other, where those of its spans are not all
    length: int = 0  # positions of what is made of it, where that stands in no place and all tokens attend to it
    within: list[tuple[int, int]] = []  # the runs of `whole` whose tokens see each other, where not all of its do

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Runs of tokens that see each other, where a model lets them."""
        return self.spans if self.whole is None else [self.whole]

    @property
    def count(self) -> int:
        """How many embeddings it has."""
        return self.length or sum(end - first for first, end in self.spans)

    @property
    def first(self) -> int:
        """The first token that needs it."""
        return self.spans[0][0] if self.spans and not self.length else 0

    @property
    def end(self) -> int:
        """The token behind the last one that needs it."""
        return sys.maxsize if self.length else self.spans[-1][1] if self.spans else 0


class EngineRequest(Struct):
    """A request as the engine takes it: checked, tokenized, with defaults filled in."""

    id: str
    token_ids: list[int]
    params: SamplingParams
    prompt: str | None = None
    beam: BeamSearchParams | None = None  # a beam search; `params` then holds what both kinds share
    pooling: PoolingParams | None = None  # hidden states are wanted, and no token; `params` then says nothing
    eos_token_ids: tuple[int, ...] = ()  # the model's own end tokens
    seed: int = 0  # drives the request's draws; its own if it gave one, else one from the engine's
    priority: int = 0  # lower runs first
    arrival: float = 0.0  # seconds, monotonic
    cache_salt: str | None = None
    bad_words_ids: list[list[int]] = []  # bad_words, tokenized
    token_types: list[int] = []  # which of a pair of texts each token is of; empty: there is no pair
    media: list[Media] = []  # in the order of their places
    encoder_prompt: str | None = None

    @property
    def encoder_token_ids(self) -> list[int]:
        """What a model's encoder reads, if it reads text; `token_ids` are then the decoder's."""
        return [id for one in self.media if one.modality == "text" for id in array("q", one.features["token_ids"].data)]


class Sequence(Struct):
    """A request that takes a slot in the worker, with all it needs from then on."""

    slot: int
    token_ids: list[int]  # prompt and, after a preemption or fork, output
    num_prompt: int
    params: SamplingParams
    eos_token_ids: tuple[int, ...]
    seed: int
    bad_words_ids: list[list[int]]
    num_candidates: int = 0  # > 0: a beam; return this many most likely next tokens instead of drawing one
    pooling: PoolingParams | None = None  # return what is pooled from the hidden states instead
    token_types: list[int] = []
    media: list[Media] = []


class Row(Struct):
    """One sequence's part in a step: compute tokens [start, start + count)."""

    slot: int
    start: int
    count: int
    new_blocks: list[list[int]]  # per cache group, appended to the slot's table
    wants_token: bool  # the range ends at the last known token: choose the next one, or pool
    tokens: list[int] = []  # the range's last tokens where the worker can't know them (a beam's choice)
    stale: list[int] = []  # per cache group, leading table entries that now point nowhere


class BlockCopy(Struct):
    """Before the step: copy one block within a cache group (a fork's partial block)."""

    group: int
    source: int
    target: int


class EncodeJob(Struct, array_like=True):
    """Before the step: have the tower encode a sequence's medium."""

    slot: int
    index: int  # of the medium


class Batch(Struct):
    """One step as decided by the scheduler; it carries only what changed."""

    step: int
    rows: list[Row]
    admitted: list[Sequence] = []
    released: list[int] = []  # slots free since the last batch
    copies: list[BlockCopy] = []
    encode: list[EncodeJob] = []
    forget: list[bytes] = []  # keys of media whose embeddings are not needed any more

    @property
    def num_tokens(self) -> int:
        return sum(row.count for row in self.rows)


class TokenLogprobs(Struct, array_like=True):
    """Log-probabilities at one position: the chosen token's, then the most likely ones, best first."""

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class Pooled(Struct, array_like=True):
    """What was pooled for a request: a vector [N], or one for each of its tokens [n, N]."""

    shape: tuple[int, ...]
    data: bytes  # float32, little endian


NO_TOKEN_LEFT = "the request's own parameters leave no token to choose"
"""The error of a row that its sender can mend."""


class RowOutput(Struct):
    """What a row brought.  Fields stay at their defaults where nothing was asked."""

    token: int = -1  # the chosen token; -1 if the row wanted none
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] = []  # for the prompt tokens start + 1 … start + count
    candidates: list[tuple[int, float]] = []  # a beam's most likely next tokens with log-probabilities, best first
    pooled: Pooled | None = None
    error: str | None = None  # this row failed; the others did not


class StepOutput(Struct):
    """The result of a Batch, row for row."""

    step: int
    rows: list[RowOutput]


class Event(Struct, array_like=True):
    """News of one sequence after a step, for the output side."""

    request_id: str
    index: int  # which of the request's n outputs
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_cached: int = 0
    error: str | None = None
    beams: list[Beam] = []  # the final beams of a beam search, best first
    pooled: Pooled | None = None
    scheduled: float = 0.0  # seconds, monotonic: when the request was first let into a batch


class Beam(Struct, array_like=True):
    """A finished beam: its generated tokens."""

    token_ids: list[int]
    cum_logprob: float
    score: float
    finish_reason: str
    stop_reason: int | None
    logprobs: list[list[tuple[int, float]]]  # per generated token, the candidates it was chosen from


class EngineStats(Struct, array_like=True):
    """What an engine is busy with, and counts since it started."""

    num_running: int = 0
    num_waiting: int = 0
    cache_usage: float = 0.0  # share of the KV cache's blocks that sequences hold
    num_preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of them, found
    num_step_tokens: int = 0  # tokens that the last step computed
