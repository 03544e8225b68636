"""A response from its request to its end, and what is kept of it afterwards."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.conversation import only_completion
from vllm.entrypoints.serve.errors import HttpError
from vllm.entrypoints.serve.generation import Count
from vllm.entrypoints.serve.http import encode
from vllm.entrypoints.serve.logprobs import LogprobWriter
from vllm.entrypoints.serve.protocol import TokenLogprob
from vllm.entrypoints.serve.responses.log import EventLog
from vllm.entrypoints.serve.responses.protocol import (
    LOGPROBS,
    IncompleteDetails,
    InputTokensDetails,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    ReasoningShown,
    Response,
    ResponseError,
    ResponsesRequest,
    ResponseUsage,
    Status,
    TextOptions,
)
from vllm.inputs.chat import Message
from vllm.messages import EngineRequest
from vllm.outputs import RequestOutput

_CODES = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class Record:
    """A response and the conversation that it belongs to.  It ends once: well, failed or cancelled."""

    def __init__(
        self,
        response: Response,
        conversation: Sequence[Message],
        size: int,
        writer: LogprobWriter | None,
        owner: bytes = b"",
    ) -> None:
        """`conversation`: without instructions; `size`: its bytes; `writer`: None for no log-probabilities.

        `owner` says whose it is: nobody else may read it or go on from it.
        """
        self.response = response
        self.owner = owner
        self.conversation = tuple(conversation)
        self.size = size
        self.body = b""
        """The response as JSON, once it has ended."""
        self.log: EventLog | None = None
        """The events of one that is streamed in the background."""
        self.task: asyncio.Task[None] | None = None
        """What computes it in the background."""
        self.item: OutputMessage | None = None
        """The answer, once it has begun."""
        self.born = time.monotonic()
        self._writer = writer
        self._count = Count(details=True)
        self._texts: list[str] = []
        self._logprobs: list[TokenLogprob] = []

    @property
    def id(self) -> str:
        return self.response.id

    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""
        return self.size + len(self.body) + (0 if self.log is None else self.log.num_bytes)

    @property
    def has_ended(self) -> bool:
        return bool(self.body)

    @property
    def num_output(self) -> int:
        """Tokens of the answer so far."""
        return self._count.completion

    def json(self) -> bytes:
        """Return the response as it is now."""
        return self.body or encode(self.response)

    def add(self, output: RequestOutput) -> tuple[str, list[TokenLogprob]]:
        """Take what is new of the answer, and return it.  Raises HttpError if the engine gave it up."""
        completion = only_completion(output)
        if self.item is None:
            self._count.begin(output)
            self.item = OutputMessage(f"msg_{secrets.token_hex(24)}", "in_progress", [OutputText("")])
        self._count.add(output)
        logprobs = []
        if self._writer is not None and completion.logprobs:
            count = self.response.top_logprobs
            logprobs = self._writer.chat(completion.token_ids, completion.logprobs, count).content
        self._texts.append(completion.text)
        self._logprobs += logprobs
        if completion.finish_reason == "length":
            self.response.incomplete_details = IncompleteDetails("max_output_tokens")
            self._end("incomplete")
        elif completion.finish_reason is not None:
            self.response.completed_at = int(time.time())
            self._end("completed")
        return completion.text, logprobs

    def fail(self, error: HttpError) -> None:
        """End with an error."""
        code = _CODES.get(error.status, "server_error")
        self.response.error = ResponseError(code, error.message)  # type: ignore[arg-type]
        self._end("failed")

    def cancel(self) -> None:
        """End because nobody wants it any more."""
        self._end("cancelled")

    def forget_details(self) -> None:
        """Let go of what `body` holds too and nobody reads elsewhere: log-probabilities take the most memory."""
        self._logprobs, self._writer = [], None
        if self.item is not None:
            self.item.content[0].logprobs = []

    def messages(self) -> tuple[Message, ...]:
        """Return the conversation with the answer."""
        text = self.item.content[0].text if self.item is not None else ""
        return (*self.conversation, {"role": "assistant", "content": text})

    def _end(self, status: Status) -> None:
        response, count = self.response, self._count
        if self.item is not None:
            self.item.status = "completed" if status == "completed" else "incomplete"
            self.item.content = [OutputText("".join(self._texts), logprobs=self._logprobs)]
            response.output = [self.item]
            response.usage = ResponseUsage(
                count.prompt,
                InputTokensDetails(count.cached),
                count.completion,
                OutputTokensDetails(),
                count.prompt + count.completion,
            )
        response.status = status
        self.body = encode(response)


def new_record(call: Call, request: EngineRequest, conversation: Sequence[Message], size: int, keeps: bool) -> Record:
    """Return the record of a response that is about to be computed.  `keeps`: whether it is stored."""
    body: ResponsesRequest = call.body
    response = Response(
        id=f"resp_{secrets.token_hex(24)}",  # never the client's choice: who knows an id may read the response
        created_at=int(time.time()),
        status="queued" if body.background else "in_progress",
        background=bool(body.background),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        model=call.model_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning=ReasoningShown((body.reasoning or {}).get("effort")),
        store=keeps,
        temperature=request.params.temperature,
        text=TextOptions({"type": "text"}, body.text.verbosity if body.text is not None else None),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs or 0,
        top_p=request.params.top_p,
        truncation=body.truncation or "disabled",
        user=body.user,
    )
    writer = None
    if LOGPROBS in (body.include or ()):
        writer = LogprobWriter(call.engine.tokenizer, call.settings.return_tokens_as_token_ids)
    return Record(response, conversation, size, writer, call.owner)
