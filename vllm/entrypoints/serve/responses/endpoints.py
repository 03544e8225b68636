"""POST /v1/responses, GET /v1/responses/{id}, POST /v1/responses/{id}/cancel."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from urllib.parse import parse_qs

from vllm.entrypoints.serve.context import Call
from vllm.entrypoints.serve.conversation import named_event, prepare_chat
from vllm.entrypoints.serve.errors import HttpError, explain, in_words_of
from vllm.entrypoints.serve.generation import deltas, finals
from vllm.entrypoints.serve.http import EventStream, Reply
from vllm.entrypoints.serve.responses.events import Events
from vllm.entrypoints.serve.responses.input import IN_WORDS, chat_of, check, messages_of
from vllm.entrypoints.serve.responses.log import EventLog
from vllm.entrypoints.serve.responses.protocol import LOGPROBS, ErrorEvent, Response, ResponsesRequest, refusal
from vllm.entrypoints.serve.responses.record import Record, new_record
from vllm.entrypoints.serve.responses.store import Store
from vllm.entrypoints.serve.route import Answer, Route
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import RequestError
from vllm.messages import EngineRequest


class Responses:
    """The endpoints and the responses that they keep."""

    def __init__(self, settings: ServerArgs) -> None:
        self.store = Store(settings.max_stored_responses, settings.stored_response_lifetime)

    async def create(self, call: Call) -> Answer:
        """Answer a request: whole, as a stream, or later."""
        body: ResponsesRequest = call.body
        check(body)
        keeps = body.store is not False and self.store.most > 0
        if body.background and not keeps:
            raise RequestError("a response in the background must be stored, to be fetched later", "background")
        previous = self._previous(body.previous_response_id, call.owner)
        conversation = messages_of(body.input)
        size = len(call.raw)
        if previous is not None:
            conversation = [*previous.messages(), *conversation]
            size += previous.size + len(previous.body)
        with in_words_of(IN_WORDS):
            chat = await chat_of(call, conversation)
            request = await prepare_chat(chat, (body.top_logprobs or 0) if LOGPROBS in (body.include or ()) else None)
        record = new_record(call, request, conversation, size, keeps)
        call.id(body.request_id)
        events = Events(record)
        if body.background:
            return self._start(call, request, record, events)
        if body.stream:
            return EventStream(self._stream(call, request, record, events), self._failing(record, events))
        (output,) = await finals(call.engine, [request])
        record.add(output)
        self._ended(call, record)
        return Reply(record.body)

    async def retrieve(self, call: Call) -> Answer:
        """Return a response that is kept, or the events of one that was streamed in the background."""
        record, query = self._kept(call), parse_qs(call.query)
        after = query.get("starting_after", ["-1"])[0]
        if query.get("stream", ["false"])[0].lower() in ("false", "0"):
            if "starting_after" in query:
                raise RequestError("starting_after is only for stream=true", "starting_after")
            return Reply(record.json())
        if record.log is None:
            message = "only what was asked for with background=true and stream=true can be streamed; leave stream out"
            raise RequestError(message, "stream")
        if not re.fullmatch("-1|[0-9]{1,9}", after):
            raise RequestError(f"starting_after must be the number of an event, got {after[:40]!r}", "starting_after")
        return _follow(record.log, int(after))

    async def cancel(self, call: Call) -> Answer:
        """End a response that is computed in the background; one that has ended stays as it is."""
        record = self._kept(call)
        if not record.response.background:
            raise RequestError("only a response in the background can be cancelled; close the connection of others")
        task = record.task
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        return Reply(record.json())

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/v1/responses",
                self.create,
                "Answer an input, or go on with a conversation.",
                body=ResponsesRequest,
                reply=Response,
                purpose="generate",
                computes=True,
                refused=refusal,
            ),
            Route(
                "GET",
                "/v1/responses/{response_id}",
                self.retrieve,
                "Return a response that is kept.",
                reply=Response,
                needs_model=False,
            ),
            Route(
                "POST",
                "/v1/responses/{response_id}/cancel",
                self.cancel,
                "End a response that is computed in the background.",
                reply=Response,
                needs_model=False,
            ),
        ]

    def _previous(self, name: str | None, owner: bytes) -> Record | None:
        if name is None:
            return None
        record, field = self.store.get(name, owner), "previous_response_id"
        if record is None:
            raise RequestError(f"{field}: there is no response {name[:100]!r}, or it is not kept any more", field)
        if record.response.status not in ("completed", "incomplete"):
            raise RequestError(f"{field}: the response is {record.response.status}, with nothing to go on from", field)
        return record

    def _kept(self, call: Call) -> Record:
        name = call.parameters["response_id"]
        record = self.store.get(name, call.owner)
        if record is None:
            raise HttpError(404, f"there is no response {name[:100]!r}, or it is not kept any more", "response_id")
        return record

    async def _stream(
        self, call: Call, request: EngineRequest, record: Record, events: Events
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._compute(call, request, record, events)) as news:
                async for shown in news:
                    yield shown
        finally:
            if not record.has_ended:
                record.cancel()  # the client is gone; if it is to be told of a failure, that follows
            self._ended(call, record, events.is_open)

    async def _compute(
        self, call: Call, request: EngineRequest, record: Record, events: Events
    ) -> AsyncGenerator[bytes, None]:
        async with aclosing(deltas(call.engine, [request])) as news:
            async for _, outputs in news:
                shown = b""
                for output in outputs:
                    text, logprobs = record.add(output)
                    assert record.item is not None
                    if not events.is_open:
                        shown += events.opening(record.item.id)
                        self._keep(record)
                    shown += events.delta(record.item.id, text, logprobs)
                if record.has_ended:
                    shown += events.closing()
                if shown:
                    yield shown

    def _failing(self, record: Record, events: Events) -> Callable[[HttpError], bytes]:
        """Return how the stream of a response ends in an error."""

        def failed(error: HttpError) -> bytes:
            event = events.failed(error)
            self._keep(record)
            return event

        return failed

    def _start(self, call: Call, request: EngineRequest, record: Record, events: Events) -> Answer:
        """Compute a response in the background, and return what its client gets meanwhile.

        It takes over the place in the queue that its request has.
        """
        model = call.model

        async def run() -> None:
            record.response.status = "in_progress"
            async with asyncio.timeout(call.settings.request_timeout):
                if record.log is None:
                    record.add((await finals(call.engine, [request]))[0])
                    return
                async with aclosing(self._compute(call, request, record, events)) as news:
                    async for _ in news:
                        pass  # the log has it

        def book(task: asyncio.Task[None]) -> None:
            model.leave()
            record.task = None
            self._settle(task, call, record, events)
            self._ended(call, record)

        model.num_running += 1
        if call.body.stream:
            record.log = EventLog()
            events.beginning()
        record.task = asyncio.create_task(run())
        record.task.add_done_callback(book)
        self.store.put(record)
        return Reply(record.json()) if record.log is None else _follow(record.log, -1)

    def _settle(self, task: asyncio.Task[None], call: Call, record: Record, events: Events) -> None:
        """Note how the computing in the background has ended, if that was not well."""
        error = None if task.cancelled() else task.exception()
        if task.cancelled():
            record.cancel()
            if record.log is not None:
                events.error("cancelled", "the response was cancelled")
        elif isinstance(error, TimeoutError):
            limit = f"{call.settings.request_timeout:g}"
            events.failed(HttpError(503, f"not done within request_timeout={limit} seconds"))
        elif error is not None:
            events.failed(explain(error, f"the response {record.id}"))
        if record.log is not None:
            record.log.end()

    def _ended(self, call: Call, record: Record, shown: bool = True) -> None:
        """Note the end of a response; `shown`: whether anybody knows of it."""
        if call.facts is not None:
            call.facts["completion_tokens"] = record.num_output
        if record.response.status in ("completed", "incomplete"):
            record.forget_details()
        if shown:
            self._keep(record)

    def _keep(self, record: Record) -> None:
        if record.response.store:
            self.store.put(record)


def _follow(log: EventLog, after: int) -> EventStream:
    """Return the events after a number, as they come."""

    def failed(error: HttpError) -> bytes:
        return named_event("error", ErrorEvent(code=error.type, message=error.message, sequence_number=len(log)))

    return EventStream(log.after(after), failed)


def routes(settings: ServerArgs) -> list[Route]:
    """Return the routes of the API, with a store of their own."""
    return Responses(settings).routes()
