"""POST /v1/completions: continue texts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from msgspec import UNSET

from vllm.entrypoints.serve.chunks import Chunks, stream_chunks
from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.errors import in_words_of
from vllm.entrypoints.serve.generation import Count, check_stream, finals, metrics_of, prepare
from vllm.entrypoints.serve.http import EventStream, json_reply
from vllm.entrypoints.serve.logprobs import LogprobWriter, prompt_logprobs
from vllm.entrypoints.serve.protocol import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from vllm.entrypoints.serve.route import Answer, Route
from vllm.errors import RequestError
from vllm.inputs.prompts import Prompt, parse_prompts
from vllm.messages import EngineRequest
from vllm.outputs import CompletionOutput, PositionLogprobs, RequestOutput

_IN_WORDS = {"prompt_token_ids": "prompt"}
_MAX_TOKENS = 16  # the interface's default for completions, which is not that for chats


async def completions(call: Call) -> Answer:
    """Answer a request, whole or as a stream."""
    body: CompletionRequest = call.body
    check_stream(body)
    name = f"cmpl-{call.id(body.request_id)}"
    max_tokens = _max_tokens(body, call.model.sampling.defaults.get("max_tokens", _MAX_TOKENS))
    if isinstance(body.logprobs, bool):
        body.logprobs = 1 if body.logprobs else None
    echoed = body.logprobs if body.echo else None
    asked = body.prompt_logprobs if body.prompt_logprobs is not None else echoed
    params = call.model.sampling.params(body, max_tokens, body.logprobs, asked)
    with in_words_of(_IN_WORDS):
        requests = await prepare(call, _prompts(body, call.settings.max_prompts), params)
    writer = _Writer(call, requests)
    created = int(time.time())
    if body.stream:
        chunks = Chunks(
            "text_completion", name, created, call.model_name, body, call.settings.enable_force_include_usage
        )
        seen = _without_text if writer.is_silent else None
        return EventStream(stream_chunks(call, requests, chunks, writer.deltas, seen))
    outputs = await finals(call.engine, requests)
    if writer.is_silent:
        outputs = [_without_text(output) for output in outputs]
    count = Count.of(outputs, call.settings.enable_prompt_tokens_details)
    choices = [
        writer.choice(position, output, completion)
        for position, output in enumerate(outputs)
        for completion in output.outputs
    ]
    reply = Completion(name, "text_completion", created, call.model_name, choices, count.usage())
    if call.settings.enable_per_request_metrics and len(outputs) == 1:
        reply.metrics = metrics_of(outputs[0], count.completion)
    if call.facts is not None:
        call.facts["completion_tokens"] = count.completion
    return json_reply(reply)


def _max_tokens(body: CompletionRequest, default: int) -> int | None:
    if body.max_tokens is UNSET:
        return default
    if body.max_tokens == 0:
        if not body.echo:
            raise RequestError("max_tokens must be at least 1, or 0 together with echo", "max_tokens")
        return 1  # a step computes a prompt and the next token; that one is not shown
    return body.max_tokens  # type: ignore[return-value]


def _prompts(body: CompletionRequest, most: int) -> list[Prompt]:
    """Return the prompts of a request, which may be one or many."""
    given = body.prompt
    if given == []:
        raise RequestError("prompt is an empty list; give at least one prompt", "prompt")
    if isinstance(given, list) and len(given) > most and not isinstance(given[0], int):
        raise RequestError(f"{len(given):,} prompts are more than max_prompts={most}", "prompt")
    try:
        prompts = parse_prompts(given)  # type: ignore[arg-type]
    except TypeError as error:
        raise RequestError(str(error), "prompt") from None
    special = body.add_special_tokens is not False
    if body.cache_salt is None and special:
        return prompts
    return [dataclasses.replace(p, cache_salt=body.cache_salt, add_special_tokens=special) for p in prompts]


class _Writer:
    """Turns the outputs of one call into choices."""

    def __init__(self, call: Call, requests: Sequence[EngineRequest]) -> None:
        body: CompletionRequest = call.body
        tokenizer = call.engine.tokenizer
        as_ids = body.return_tokens_as_token_ids
        self.body = body
        self.tokenizer = tokenizer
        self.is_silent = body.max_tokens == 0
        """Nothing is generated: one token is, and nobody sees it."""
        self.logprobs = LogprobWriter(tokenizer, call.settings.return_tokens_as_token_ids if as_ids is None else as_ids)
        first = requests[0]
        self.width = first.params.n if first.beam is None else first.beam.beam_width
        self._offsets: dict[int, int] = {}
        """Where the next token's text begins, for each choice of a stream."""

    def choice(self, position: int, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice:
        """Return a whole choice."""
        choice = self._choice(position, completion)
        if self.body.echo:
            self._echo(choice, output, completion)
        else:
            choice.logprobs = self._logprobs(completion.token_ids, completion.logprobs, 0)
        if self.body.return_token_ids:
            choice.prompt_token_ids = output.prompt_token_ids or []
        if self.body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(output.prompt_logprobs)
        return choice

    def deltas(self, position: int, output: RequestOutput) -> list[CompletionChoice]:
        """Return what is new of a request's choices, of those of which something shows."""
        choices = [self._delta(position, output, completion) for completion in output.outputs]
        return [choice for choice in choices if choice is not None]

    def _delta(self, position: int, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice | None:
        choice = self._choice(position, completion)
        offset = self._offsets.get(choice.index)
        if offset is None:
            if self.body.return_token_ids:
                choice.prompt_token_ids = output.prompt_token_ids or []
            if self.body.echo:
                self._echo(choice, output, completion)
                self._offsets[choice.index] = _end(choice.logprobs, 0)
                return choice
            offset = 0
        choice.logprobs = self._logprobs(completion.token_ids, completion.logprobs, offset)
        self._offsets[choice.index] = _end(choice.logprobs, offset)
        shows = choice.text or choice.finish_reason or choice.logprobs is not None or choice.token_ids is not UNSET
        return choice if shows else None

    def _choice(self, position: int, completion: CompletionOutput) -> CompletionChoice:
        index = position * self.width + completion.index
        reason = completion.finish_reason
        choice = CompletionChoice(index, completion.text, None, reason, completion.stop_reason)  # type: ignore[arg-type]
        if self.body.return_token_ids:
            choice.token_ids = completion.token_ids
        return choice

    def _echo(self, choice: CompletionChoice, output: RequestOutput, completion: CompletionOutput) -> None:
        """Put the prompt in front."""
        prompt, tokens = output.prompt, output.prompt_token_ids or []
        if prompt is None and self.tokenizer is not None:
            prompt = self.tokenizer.decode(tokens, self.body.skip_special_tokens is not False)
        choice.text = (prompt or "") + choice.text
        positions = [*(output.prompt_logprobs or []), *(completion.logprobs or [])]
        choice.logprobs = self._logprobs([*tokens, *completion.token_ids], positions, 0)

    def _logprobs(
        self, token_ids: list[int], positions: Sequence[PositionLogprobs | None] | None, offset: int
    ) -> CompletionLogprobs | None:
        if self.body.logprobs is None or positions is None:
            return None
        return self.logprobs.completion(token_ids, positions, offset, self.body.logprobs)


def _end(logprobs: CompletionLogprobs | None, offset: int) -> int:
    """Return where the text of the tokens ends; the text itself may leave out a stop string."""
    return logprobs.text_offset[-1] + len(logprobs.tokens[-1]) if logprobs and logprobs.tokens else offset


def _without_text(output: RequestOutput) -> RequestOutput:
    """Take away what was generated: only the prompt was asked for."""
    empty = [
        dataclasses.replace(
            completion,
            text="",
            token_ids=[],
            logprobs=None if completion.logprobs is None else [],
            finish_reason=completion.finish_reason and "length",
            stop_reason=None,
        )
        for completion in output.outputs
    ]
    return dataclasses.replace(output, outputs=empty)


ROUTES = [
    Route(
        "POST",
        "/v1/completions",
        completions,
        "Continue one or more texts.",
        body=CompletionRequest,
        reply=Completion,
        purpose="generate",
        computes=True,
    )
]
