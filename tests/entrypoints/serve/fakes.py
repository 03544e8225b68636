"""An engine that follows a script, and a client that speaks ASGI: the front alone, without a process or a socket."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import vllm
from tests.entrypoints.pooled import output_of
from vllm.config import EngineArgs
from vllm.engine.output_processor import OutputProcessor
from vllm.entrypoints.serve.app import App
from vllm.entrypoints.serve.context import Server
from vllm.entrypoints.serve.lineup import ModelArgs, one_model
from vllm.entrypoints.serve.routes import routes
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Limits, Preparer
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer
from vllm.messages import Beam, EngineRequest, Event, TokenLogprobs
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import Pooling

FOLDER = Path(vllm.__file__).parent / "assets" / "default_model"
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@functools.cache
def tokenizer() -> Tokenizer:
    return load_tokenizer(FOLDER)


@dataclass(frozen=True)
class FakeModel:
    model: str = "acme/tiny"
    max_model_len: int = 512
    vocab_size: int = 4096
    tokenizer: str | None = str(FOLDER)
    default_sampling: dict[str, Any] = field(default_factory=dict)
    pooling: Pooling | None = None
    hf_config: Any = field(default_factory=lambda: SimpleNamespace(id2label={0: "bad", 1: "fair", 2: "good"}))


@dataclass(frozen=True)
class FakeLoaded:
    memory: str = "no weights"
    num_blocks: int = 10
    num_cache_tokens: int = 160
    num_bytes: int = 100
    free_bytes: int = 1000


class FakeEngine:
    """Answers every request with the text of `script`, in pieces of `sizes` tokens."""

    def __init__(self, script: str | Callable[[EngineRequest, int], str] = " and so on", **model: Any) -> None:
        self.model_config = FakeModel(**model)
        self.tokenizer: Tokenizer | None = tokenizer()
        limits = Limits(tokenizer().vocab_size, self.model_config.max_model_len)
        self.preparer = Preparer(self.tokenizer, limits, eos_token_ids=())
        self.state = "ready"
        self.template = TEMPLATE
        self.ready: FakeLoaded | None = FakeLoaded()
        self.observer: Any = None
        self.free_bytes: int | None = None
        self.script = script
        self.sizes: Sequence[int] = (1,)
        self.together = 1
        """Outputs that come at a time."""
        self.pause: float | None = None
        """Seconds between pieces; None: not even a turn of the event loop."""
        self.error: Exception | None = None
        """Raised after the first piece, or before it if `error_first`."""
        self.error_first = False
        self.fails_alone: str | None = None
        self.seen: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.finished: list[str] = []

    def chat_renderer(self) -> ChatRenderer:
        return ChatRenderer(
            self.model_config.model, {"default": self.template, "loud": "{{ messages[0].content }}!"}, {}
        )

    def health(self) -> str | None:
        return None if self.state == "ready" else self.state

    async def start(self) -> None:
        self.state = "ready"

    async def stop(self, timeout: float) -> None:
        self.state = "stopping"

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[RequestOutput], None]:
        self.seen.append(request)
        done = False
        try:
            if self.error is not None and self.error_first:
                raise self.error
            processor = OutputProcessor(self.tokenizer)
            processor.add(request)
            waiting: list[RequestOutput] = []
            for events in self._pieces(request):
                outputs, _ = processor.process(events)
                waiting += outputs
                if self.pause is not None:
                    await asyncio.sleep(self.pause)
                if len(waiting) >= self.together or (waiting and waiting[-1].finished):
                    yield waiting
                    waiting = []
                if self.error is not None:
                    raise self.error
            done = True
        finally:
            (self.finished if done else self.aborted).append(request.id)

    async def encode(self, request: EngineRequest) -> PoolingRequestOutput[Any]:
        self.seen.append(request)
        done = False
        try:
            if self.error is not None:
                raise self.error
            if self.pause is not None:
                await asyncio.sleep(self.pause)
            done = True
            assert self.model_config.pooling is not None
            return output_of(request, self.model_config.pooling, self.fails_alone)
        finally:
            (self.finished if done else self.aborted).append(request.id)

    def _pieces(self, request: EngineRequest) -> list[list[Event]]:
        params = request.params
        if request.beam is not None:
            beams = [self._beam(request, index) for index in range(request.beam.beam_width)]
            return [[Event(request.id, 0, beams[0].token_ids, finish_reason="length", beams=beams)]]
        pieces: list[list[Event]] = []
        for index in range(params.num_samples):
            tokens = self.tokens(request, index)
            for number, (first, last) in enumerate(_cuts(len(tokens), self.sizes)):
                if number == len(pieces):
                    pieces.append([])
                event = Event(request.id, index, tokens[first:last], num_cached=3)
                if params.num_logprobs is not None:
                    event.logprobs = [_logprobs(token, params.num_logprobs) for token in event.token_ids]
                if number == 0 and index == 0 and params.prompt_logprobs is not None:
                    event.prompt_logprobs = [_logprobs(t, params.prompt_logprobs) for t in request.token_ids[1:]]
                if last == len(tokens):
                    is_cut = params.max_tokens is not None and len(tokens) >= params.max_tokens
                    event.finish_reason = "length" if is_cut else "stop"
                    if not is_cut and not params.include_stop_str_in_output:
                        event.token_ids = [*event.token_ids, 0]  # an end token, which is not shown
                        if event.logprobs:
                            event.logprobs = [*event.logprobs, _logprobs(0, params.num_logprobs or 0)]
                    if self.fails_alone is not None:
                        event.finish_reason, event.error = "error", self.fails_alone
                pieces[number].append(event)
        return pieces

    def tokens(self, request: EngineRequest, index: int) -> list[int]:
        text = self.script if isinstance(self.script, str) else self.script(request, index)
        return tokenizer().encode(text, add_special_tokens=False)[: request.params.max_tokens]

    def _beam(self, request: EngineRequest, index: int) -> Beam:
        tokens = self.tokens(request, index)
        return Beam(tokens, -float(index), -float(index), "length", None, [[(token, -0.5)] for token in tokens])


def _cuts(total: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    cuts, first = [], 0
    while first < total or not cuts:
        last = min(total, first + sizes[len(cuts) % len(sizes)])
        cuts.append((first, last))
        first = last
    return cuts


def _logprobs(token: int, count: int) -> TokenLogprobs:
    """The chosen token is the second likeliest; the first of the others is token 5."""
    others = [5, token, 6, 7, 8][:count]
    return TokenLogprobs(-1.5, 2, others, [-0.5, -1.5, -2.5, float("-inf"), float("-inf")][:count])


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        assert set(self.json) == {"error"} and set(self.json["error"]) == {"message", "type", "param", "code"}
        assert self.json["error"]["code"] == self.status
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, without the last, which is [DONE]."""
        assert self.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines.pop() == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines]


class Client:
    """Calls an application in this process."""

    def __init__(
        self,
        engine: Any = None,
        keys: Sequence[str] = (),
        max_num_seqs: int = 4,
        others: Mapping[str, FakeEngine] | None = None,
        **settings: Any,
    ) -> None:
        """`others`: further models, by name."""
        self.engine = FakeEngine() if engine is None else engine
        args = ServerArgs(**settings)
        first = one_model(EngineArgs(model="acme/tiny", max_num_seqs=max_num_seqs), args)
        others = others or {}
        further = [ModelArgs(EngineArgs(model=name), (name,), args.unload_after) for name in others]
        self.server = Server(args, [first, *further])
        self.model = self.server.models[0]
        for model, one in zip(self.server.models, [self.engine, *others.values()], strict=True):
            model.engine = one
        self.app = App(self.server, routes(args), keys)

    def post(self, path: str, body: Any = None, **options: Any) -> Answer:
        return asyncio.run(self.request("POST", path, body, **options))

    def get(self, path: str, **options: Any) -> Answer:
        return asyncio.run(self.request("GET", path, **options))

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        gone_after: float | None = None,
        gone_after_chunks: int | None = None,
    ) -> Answer:
        """Send one request.  The client leaves after some seconds, or some chunks, if told so."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", "content-length": str(len(raw))} | (headers or {})
        scope = {
            "type": "http",
            "method": method,
            "path": path.partition("?")[0],
            "raw_path": path.encode(),
            "query_string": path.partition("?")[2].encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items() if value],
        }
        gone, messages = asyncio.Event(), []
        requests = iter([{"type": "http.request", "body": raw, "more_body": False}])

        async def receive() -> Any:
            if (message := next(requests, None)) is not None:
                return message
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)
            if gone_after_chunks is not None and len(messages) > gone_after_chunks:
                gone.set()
            await asyncio.sleep(0)

        if gone_after is not None:
            asyncio.get_running_loop().call_later(gone_after, gone.set)
        await self.app(scope, receive, send)
        if not messages:
            return Answer(0, {}, b"")
        start, *rest = messages
        assert start["type"] == "http.response.start"
        assert [message.get("more_body", False) for message in rest][-1:] == [False] or gone.is_set()
        answer_headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return Answer(start["status"], answer_headers, b"".join(message["body"] for message in rest))
