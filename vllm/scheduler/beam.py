"""Beam search as bookkeeping over live sequences.

A step of the search takes every live beam's most likely next tokens and keeps the best `width` continuations over all
beams.  A continuation that ends (an end token, or no room) is finished, if it is among the best `width` of the step, and
competes for a place among the `width` best finished ones by its score

    cumulative log-probability / generated tokens ** length_penalty

The search is over when no live beam, at its present length, scores better than the worst of a full set of finished
ones.  These are the rules of transformers' beam search with `early_stopping=False`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from vllm.messages import Beam
from vllm.sampling_params import BeamSearchParams
from vllm.scheduler.request import Request

Candidates = list[tuple[int, float]]


@dataclass(slots=True, eq=False)
class LiveBeam:
    """A beam under way: its sequence, and the path that led to it."""

    request: Request
    cum_logprob: float = 0.0
    logprobs: list[Candidates] = field(default_factory=list)
    candidates: Candidates | None = None
    """What the last step brought; None until it has."""


class Continuation(NamedTuple):
    parent: LiveBeam
    token: int
    cum_logprob: float


@dataclass(slots=True, eq=False)
class BeamGroup:
    """The beams of one request."""

    params: BeamSearchParams
    end_tokens: frozenset[int]
    max_output: int
    live: list[LiveBeam] = field(default_factory=list)
    finished: list[Beam] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """Next tokens needed of each beam so that `width` of them can go on even if all end tokens rank first."""
        return max(2, 1 + len(self.end_tokens)) * self.params.beam_width

    @property
    def is_ready(self) -> bool:
        """Whether every live beam has brought its candidates."""
        return all(beam.candidates is not None for beam in self.live)

    def beam_of(self, request: Request) -> LiveBeam:
        return next(beam for beam in self.live if beam.request is request)

    def advance(self) -> list[Continuation]:
        """Take one step of the search: update `finished`, return the continuations that live on; none: it is over."""
        width, length = self.params.beam_width, self.live[0].request.num_output + 1
        ranked = sorted(
            (
                Continuation(beam, token, beam.cum_logprob + logprob)
                for beam in self.live
                for token, logprob in beam.candidates or ()
            ),
            key=lambda continuation: -continuation.cum_logprob,  # a stable sort: ties go to the earlier beam
        )[: self.num_candidates]
        ends = [continuation.token in self.end_tokens or length >= self.max_output for continuation in ranked]
        for continuation, is_end in zip(ranked[:width], ends[:width], strict=True):
            if is_end:
                self._finish(continuation, length)
        self.finished.sort(key=lambda beam: -beam.score)
        del self.finished[width:]
        alive = [continuation for continuation, is_end in zip(ranked, ends, strict=True) if not is_end][:width]
        if not alive or (
            len(self.finished) == width and self._score(alive[0].cum_logprob, length) <= self.finished[-1].score
        ):
            return []
        return alive

    def _finish(self, continuation: Continuation, length: int) -> None:
        parent, token, cum_logprob = continuation
        is_stop = token in self.end_tokens
        self.finished.append(
            Beam(
                token_ids=[*parent.request.tokens[parent.request.num_prompt :], token],
                cum_logprob=cum_logprob,
                score=self._score(cum_logprob, length),
                finish_reason="stop" if is_stop else "length",
                stop_reason=token if is_stop else None,
                logprobs=[*parent.logprobs, parent.candidates or []],
            )
        )

    def _score(self, cum_logprob: float, length: int) -> float:
        return cum_logprob / float(length**self.params.length_penalty)
