"""The output side: tokens become text, events become RequestOutputs; what was pooled is handed on.

One state per request and one stream per output sequence; nothing here knows of slots, blocks or steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from vllm.engine.detokenize import Detokenizer
from vllm.inputs.tokenizer import Tokenizer
from vllm.messages import Beam, EngineRequest, Event, TokenLogprobs
from vllm.outputs import (
    CompletionOutput,
    Logprob,
    PoolingOutput,
    PoolingRequestOutput,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
)
from vllm.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams

PooledOutput = PoolingRequestOutput[PoolingOutput]
"""What a pooling model made of a prompt, as a float32 array of numpy: the front has no tensors."""
Output = RequestOutput | PooledOutput


class TokenNames:
    """Texts of single tokens, as log-probabilities show them."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def logprobs(self, position: TokenLogprobs, token: int, named: bool) -> PositionLogprobs:
        """Return one position's entry: the chosen token first, then the most likely ones."""
        entry = {token: Logprob(position.logprob, position.rank, self._name(token, named))}
        for rank, (other, logprob) in enumerate(zip(position.top_ids, position.top_logprobs, strict=True), start=1):
            if other != token:
                entry[other] = Logprob(logprob, rank, self._name(other, named))
        return entry

    def candidates(self, token: int, options: list[tuple[int, float]]) -> PositionLogprobs:
        """Return the entry of a beam's token, chosen from `options`, best first."""
        ranked = {
            other: Logprob(logprob, rank, self._name(other, True)) for rank, (other, logprob) in enumerate(options, 1)
        }
        return {token: ranked.pop(token), **ranked}

    def _name(self, token: int, named: bool) -> str | None:
        return self._tokenizer.token_text(token) if named and self._tokenizer is not None else None


@dataclass(slots=True)
class Stream:
    """One output sequence."""

    index: int
    text: Detokenizer
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[PositionLogprobs] | None = None
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    num_given: int = 0
    """Tokens that deltas have given out."""

    def completion(self, delta: bool) -> CompletionOutput:
        """Return the sequence so far, or what is new of it."""
        first, self.num_given = (self.num_given if delta else 0), len(self.token_ids)
        return CompletionOutput(
            index=self.index,
            text=self.text.take_delta() if delta else self.text.text,
            token_ids=self.token_ids[first:],
            cumulative_logprob=self.cumulative_logprob,
            logprobs=None if self.logprobs is None else self.logprobs[first:],
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


@dataclass(slots=True)
class RequestState:
    """A request whose outputs are on their way."""

    request: EngineRequest
    params: SamplingParams
    streams: list[Stream]
    metrics: RequestMetrics
    prompt_logprobs: list[PositionLogprobs | None] | None
    num_cached: int = 0
    beams: list[Beam] = field(default_factory=list)

    @property
    def is_ranked(self) -> bool:
        """More sequences are generated than returned: nothing can be given before all are there."""
        return len(self.streams) > self.params.n

    @property
    def waits_for_its_end(self) -> bool:
        """Whether nobody is to see it unfinished."""
        return self.params.output_kind is RequestOutputKind.FINAL_ONLY or self.is_ranked

    def take_prompt_logprobs(self, delta: bool) -> list[PositionLogprobs | None] | None:
        """Return those of the whole prompt; among deltas, only once."""
        given = self.prompt_logprobs
        if delta:
            self.prompt_logprobs = None
        return None if given is None else list(given)

    @property
    def finished(self) -> bool:
        return None not in [stream.finish_reason for stream in self.streams]


class OutputProcessor:
    """Follows requests from their first token to their last."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer
        self.names = TokenNames(tokenizer)
        self._states: dict[str, RequestState] = {}
        self._pooled: dict[str, EngineRequest] = {}

    def __len__(self) -> int:
        return len(self._states) + len(self._pooled)

    def add(self, request: EngineRequest) -> None:
        if request.pooling is not None:
            self._pooled[request.id] = request
            return
        params = request.params
        streams = []
        for index in range(1 if request.beam else params.num_samples):
            stream = Stream(index, Detokenizer(self.tokenizer, request.token_ids, params))
            if params.num_logprobs is not None:
                stream.logprobs, stream.cumulative_logprob = [], 0.0
            streams.append(stream)
        prompt_logprobs: list[PositionLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self._states[request.id] = RequestState(
            request, params, streams, RequestMetrics(request.arrival), prompt_logprobs
        )

    def abort(self, request_id: str) -> None:
        self._states.pop(request_id, None)
        self._pooled.pop(request_id, None)

    def process(self, events: Iterable[Event]) -> tuple[list[Output], list[tuple[str, int]]]:
        """Take a step's events.  Return what the users get, and the sequences that ended by a stop string."""
        touched: dict[str, set[int]] = {}
        stopped: list[tuple[str, int]] = []
        outputs: list[Output] = []
        now = time.monotonic()
        for event in events:
            if request := self._pooled.pop(event.request_id, None):
                outputs.append(_pooled_output(request, event))
                continue
            state = self._states.get(event.request_id)
            if state is None or state.streams[event.index].finish_reason is not None:
                continue  # aborted meanwhile, or ended by a stop string that the scheduler has not heard of yet
            if event.token_ids or event.finish_reason is not None:  # else a part of the prompt's log-probabilities
                touched.setdefault(event.request_id, set()).add(event.index)
            if self._take(state, event):
                stopped.append((event.request_id, event.index))
            if event.token_ids and state.metrics.first_token_time is None:
                state.metrics.first_token_time = now
        for name, indices in touched.items():
            state = self._states[name]
            if state.finished:
                state.metrics.finished_time = now
                del self._states[name]
            if state.finished or not state.waits_for_its_end:
                outputs.append(self._output(state, indices))
        return outputs, stopped

    def _take(self, state: RequestState, event: Event) -> bool:
        """Book an event; return whether the text met a stop string that the scheduler must hear of."""
        stream = state.streams[event.index]
        state.num_cached = max(state.num_cached, event.num_cached)
        if event.scheduled and state.metrics.first_scheduled_time is None:
            state.metrics.first_scheduled_time = event.scheduled
        if state.prompt_logprobs is not None:
            self._take_prompt_logprobs(state.prompt_logprobs, state, event)
        stream.token_ids += event.token_ids
        if stream.logprobs is not None and event.logprobs:
            for token, position in zip(event.token_ids, event.logprobs, strict=True):
                stream.cumulative_logprob = (stream.cumulative_logprob or 0.0) + position.logprob
                if state.params.logprobs is not None:
                    stream.logprobs.append(self.names.logprobs(position, token, state.params.detokenize))
        hit = stream.text.push(shown_tokens(event.token_ids, event.finish_reason, state.params))
        if hit is not None:
            stream.finish_reason, stream.stop_reason = "stop", hit.stop
        else:
            stream.finish_reason, stream.stop_reason = event.finish_reason, event.stop_reason
        if stream.finish_reason is not None:
            stream.text.finish()
            state.beams = event.beams
        if event.error is not None:
            stream.stop_reason = event.error
        return hit is not None and event.finish_reason is None

    def _take_prompt_logprobs(self, found: list[PositionLogprobs | None], state: RequestState, event: Event) -> None:
        for position in event.prompt_logprobs:
            token = state.request.token_ids[len(found)]
            found.append(self.names.logprobs(position, token, state.params.detokenize))

    def _output(self, state: RequestState, indices: set[int]) -> RequestOutput:
        kind = state.params.output_kind
        if state.beams:
            completions = [self._beam(state, index, beam) for index, beam in enumerate(state.beams)]
        elif kind is RequestOutputKind.DELTA and not state.is_ranked:
            completions = [state.streams[index].completion(delta=True) for index in sorted(indices)]
        else:
            completions = [stream.completion(delta=False) for stream in _best(state)]
        request = state.request
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=request.token_ids,
            encoder_prompt=request.encoder_prompt,
            encoder_prompt_token_ids=request.encoder_token_ids or None,
            prompt_logprobs=state.take_prompt_logprobs(kind is RequestOutputKind.DELTA),
            outputs=completions,
            finished=state.finished,
            metrics=state.metrics,
            num_cached_tokens=state.num_cached,
        )

    def _beam(self, state: RequestState, index: int, beam: Beam) -> CompletionOutput:
        """Write a beam like any other output."""
        text = Detokenizer(self.tokenizer, state.request.token_ids, state.params)
        text.push(shown_tokens(beam.token_ids, beam.finish_reason, state.params))
        text.finish()
        return CompletionOutput(
            index=index,
            text=text.text,
            token_ids=beam.token_ids,
            cumulative_logprob=beam.cum_logprob,
            logprobs=[
                self.names.candidates(token, options)
                for token, options in zip(beam.token_ids, beam.logprobs, strict=True)
            ],
            finish_reason=beam.finish_reason,
            stop_reason=beam.stop_reason,
        )


def _pooled_output(request: EngineRequest, event: Event) -> PooledOutput:
    data = np.zeros(0, np.float32)
    if event.pooled is not None:
        data = np.frombuffer(event.pooled.data, "<f4").reshape(event.pooled.shape)
    return PoolingRequestOutput(
        request.id, PoolingOutput(data), request.token_ids, num_cached_tokens=event.num_cached, error=event.error
    )


def shown_tokens(
    token_ids: list[int], finish_reason: str | None, params: SamplingParams | BeamSearchParams
) -> list[int]:
    """Return the tokens that make the text: an end token, which is the last one, is no part of it unless asked for."""
    is_hidden = finish_reason == "stop" and not params.include_stop_str_in_output
    return token_ids[:-1] if is_hidden else token_ids


def _best(state: RequestState) -> list[Stream]:
    """The streams to return: all of them, or the `n` most likely of `best_of`, those that failed last."""
    if not state.is_ranked:
        return state.streams

    def rank(stream: Stream) -> tuple[bool, float]:
        return stream.finish_reason == "error", -(stream.cumulative_logprob or 0.0)

    ranked = sorted(state.streams, key=rank)[: state.params.n]
    for index, stream in enumerate(ranked):
        stream.index = index
        if state.params.logprobs is None:  # they were only taken for the ranking
            stream.logprobs = None
    return ranked
