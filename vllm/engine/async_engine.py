"""The front's end of an engine process: it starts one, feeds it, hears from it, and starts another when it dies.

    generate ─▶ Add ─▶ (socket) ─▶ engine                      loading ─▶ ready ─▶ stopping
             ◀─ outputs ◀─ OutputProcessor ◀─ News ◀─┘              ▲         │
                                                                  └─ dead ◀─┘
One that was stopped can be started again.

Text lives here, tensors live there.  No torch is imported on this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol, cast

from vllm.config import EngineArgs, EngineConfig, ModelConfig
from vllm.engine import wire
from vllm.engine.output_processor import Output, OutputProcessor, PooledOutput
from vllm.engine.setup import make_chat_renderer, make_preparer, resolve
from vllm.errors import ConfigError, EngineDeadError, ModelError, OverloadedError, RequestError, VllmError
from vllm.inputs.chat import ChatRenderer
from vllm.logging import get_logger
from vllm.messages import EngineRequest, EngineStats, Event
from vllm.outputs import RequestOutput

logger = get_logger(__name__)

RESTARTS = (0.0, 1.0, 5.0, 30.0)
"""Seconds before an engine that died is started again: longer each time, unless it had been well for a while."""
WELL_AFTER = 60.0
SILENCE = 10.0
"""Seconds without a word from an engine that has work, after which it is asked whether it computes at all."""
EXIT_SECONDS = 2.0


class Observer(Protocol):
    """Who counts what an engine does."""

    def added(self, request: EngineRequest) -> None:
        """A request was handed over."""

    def stepped(self, events: Sequence[Event], outputs: Sequence[Output], stats: EngineStats) -> None:
        """A step brought news; what users get of it."""

    def ended(self, request_id: str, reason: str) -> None:
        """A request ended otherwise than by its last token: "abort", because nobody reads on, or "error"."""

    def restarted(self) -> None:
        """The engine process died, and another takes its place."""


class AsyncEngine:
    """An engine process, as the event loop sees it."""

    def __init__(self, args: EngineArgs) -> None:
        """Read what the model says of itself.  Raises ConfigError or ModelError for what cannot work."""
        self.args = args
        self.observer: Observer | None = None
        self.free_bytes: int | None = None
        """What its share of memory is a share of; None: what is free when the model is loaded."""
        self.config: EngineConfig
        self.config, self.tokenizer = resolve(args)
        self.preparer = make_preparer(self.config.model, self.tokenizer)
        self.outputs = OutputProcessor(self.tokenizer)
        self.state = "loading"
        self.ready: wire.Ready | None = None
        """What the engine said when it had loaded."""
        self.num_restarts = 0
        self._stats = EngineStats()
        self._mailboxes: dict[str, _Mailbox] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._link: _Link | None = None
        self._running: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._heard = self._seen = time.monotonic()
        self._cpu_seconds = 0.0

    @property
    def model_config(self) -> ModelConfig:
        return self.config.model

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._mailboxes)

    def chat_renderer(self) -> ChatRenderer:
        """Return what turns conversations into prompts, with the model's own templates."""
        return make_chat_renderer(self.config.model, self.preparer)

    def stats(self) -> EngineStats:
        """What the engine was busy with after its last step."""
        return self._stats

    async def start(self) -> None:
        """Start the engine process and wait until the model is loaded.

        Raises ConfigError or ModelError if it can't be, EngineDeadError if the process ended without a word.  From then on
        it is kept alive.
        """
        loop = asyncio.get_running_loop()
        self.state = "loading"
        self._loaded = loop.create_future()
        self._running = loop.create_task(self._keep_alive())
        self._running.add_done_callback(self._gave_out)
        try:
            await asyncio.shield(self._loaded)
        except Exception:
            await self.stop()  # what is left of it must not be taken for part of the next start
            raise

    async def stop(self, timeout: float = 0.0) -> None:
        """Let requests end, for at most `timeout` seconds; then stop the engine.  What is left is told so."""
        if self.state == "loading":
            self._kill()  # it would not hear anything before it has loaded
        self.state = "stopping"
        if timeout > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout)
        self._fail_all(EngineDeadError("the server is shutting down"))
        self._send(wire.Stop())
        if self._running is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._running), EXIT_SECONDS)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        self._kill()

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[RequestOutput]]:
        """Run a request; give what has come since the last time, until it is finished.

        Leaving the iterator early aborts the request.  Raises RequestError if the scheduler refuses it, OverloadedError
        while there is no engine, EngineDeadError if the engine dies meanwhile.
        """
        mailbox = self._submit(request)
        try:
            while True:
                outputs = await mailbox.take()
                yield cast("list[RequestOutput]", outputs)
                if outputs[-1].finished:
                    return
        finally:
            self._forget(request.id)

    async def encode(self, request: EngineRequest) -> PooledOutput:
        """Run a request of a model that pools, to its end; who stops waiting aborts it.  Raises as `stream`."""
        mailbox = self._submit(request)
        try:
            (output,) = await mailbox.take()
            return cast(PooledOutput, output)
        finally:
            self._forget(request.id)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[RequestOutput]:
        """Run a request; give its outputs one by one.  Otherwise as `stream`."""
        async with contextlib.aclosing(self.stream(request)) as stream:
            async for outputs in stream:
                for output in outputs:
                    yield output

    def reset_prefix_cache(self) -> None:
        """Forget cached prompt beginnings."""
        self._send(wire.ResetPrefixCache())

    def health(self) -> str | None:
        """Return what is wrong, in words; None if all is well."""
        if self.state == "loading":
            return "the model is being loaded"
        if self.state == "dead":
            return "the engine process died and is being started again"
        if self.state == "stopping":
            return "the server is shutting down"
        if self._process is None or self._process.poll() is not None:
            return "the engine process is gone"
        return self._frozen(self._process.pid)

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _submit(self, request: EngineRequest) -> _Mailbox:
        if self.state == "stopping":
            raise OverloadedError("the server is shutting down", 5.0)
        if self.state != "ready":
            raise OverloadedError(f"{self.health() or 'there is no engine'}; try again in a moment", 5.0)
        if request.id in self._mailboxes:
            raise RequestError(f"request id {request.id!r} is in use", "request_id")
        mailbox = self._mailboxes[request.id] = _Mailbox()
        self._idle.clear()
        if len(self._mailboxes) == 1:
            self._heard = time.monotonic()
        self.outputs.add(request)
        self._send(wire.Add(request))
        if self.observer is not None:
            self.observer.added(request)
        return mailbox

    def _forget(self, request_id: str) -> None:
        """A request's reader is gone, at its end or before."""
        mailbox = self._mailboxes.pop(request_id, None)
        if mailbox is not None and not mailbox.ended:
            self.outputs.abort(request_id)
            self._send(wire.Abort([request_id]))
            if self.observer is not None:
                self.observer.ended(request_id, "abort")
        if not self._mailboxes:
            self._idle.set()

    def _fail(self, request_id: str, error: VllmError) -> None:
        """Have a request's reader meet an error."""
        self.outputs.abort(request_id)
        mailbox = self._mailboxes.get(request_id)
        if mailbox is not None and not mailbox.ended:
            mailbox.fail(error)
            if self.observer is not None:
                self.observer.ended(request_id, "error")

    def _fail_all(self, error: VllmError) -> None:
        for request_id in list(self._mailboxes):
            self._fail(request_id, error)

    # ── the engine's words ──────────────────────────────────────────────────────────────────────────────────────────

    def hear(self, message: wire.ToFront) -> None:
        """Take a message of the engine."""
        self._heard = time.monotonic()
        match message:
            case wire.News(events, stats):
                self._stats = stats
                self._take_events(events)
            case wire.Refused(request_id, text, param):
                self._fail(request_id, RequestError(text, param))
            case wire.Ready():
                self.ready, self.state = message, "ready"
                if self._loaded is not None and not self._loaded.done():
                    self._loaded.set_result(None)
            case wire.Failed(kind, text):
                errors: dict[str, type[VllmError]] = {"config": ConfigError, "model": ModelError}
                self._give_up(errors.get(kind, EngineDeadError)(text))

    def _take_events(self, events: Sequence[Event]) -> None:
        try:
            outputs, stopped = self.outputs.process(events)
        except Exception:  # some of the news is lost: nobody may go on without it
            logger.exception("no text could be made of a step's tokens; its requests end")
            for request_id in dict.fromkeys(event.request_id for event in events):
                self._fail(request_id, EngineDeadError("no text could be made of the output's tokens"))
                self._send(wire.Abort([request_id]))
            return
        if self.observer is not None:
            self.observer.stepped(events, outputs, self._stats)
        for output in outputs:
            if mailbox := self._mailboxes.get(output.request_id):
                mailbox.put(output)
        for request_id, index in stopped:
            self._send(wire.Finish(request_id, index))

    def _send(self, message: wire.ToEngine) -> None:
        """Say something to the engine, if there is one."""
        if self._link is not None:
            self._link.send(message)

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _keep_alive(self) -> None:
        """Run one engine process after another, until told to stop."""
        failures = 0
        while self.state != "stopping":
            began = time.monotonic()
            await self._run_one()
            if self.state == "stopping" or (self._loaded is not None and not self._loaded.done()):
                break
            failures = 0 if time.monotonic() - began > WELL_AFTER else failures + 1
            self.num_restarts += 1
            if self.observer is not None:
                self.observer.restarted()
            await asyncio.sleep(RESTARTS[min(failures, len(RESTARTS)) - 1] if failures else 0.0)

    def _gave_out(self, task: asyncio.Task[None]) -> None:
        """Nobody keeps the engine alive any more."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            logger.error("the engine cannot be kept alive", exc_info=error)
            self.state = "stopping"
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(error or EngineDeadError(self._last_words()))
            self._loaded.exception()  # who waited for it may be gone
        self._fail_all(EngineDeadError("there is no engine any more"))

    async def _run_one(self) -> None:
        """Start a process and stay with it to its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "vllm.engine.process", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        ours.setblocking(False)
        _, link = await asyncio.get_running_loop().create_connection(lambda: _Link(self), sock=ours)
        self._link = link
        link.send(wire.Load(wire.options_of(self.args), self.free_bytes))
        await link.closed
        self._link = None
        cause = await self._reap()
        if self.state != "stopping":
            if self.state == "ready":
                logger.error("%s; it is started again", cause)
            self.state = "dead"
        self._stats = EngineStats()
        self._fail_all(EngineDeadError(cause))

    async def _reap(self) -> str:
        """Wait for the process whose socket is closed, and say how it ended."""
        process = self._process
        assert process is not None
        end = time.monotonic() + EXIT_SECONDS
        while process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self._kill()
        return self._last_words()

    def _last_words(self) -> str:
        code = self._process.poll() if self._process is not None else None
        if code is None or code >= 0:
            return f"the engine process ended with status {code}"
        name = signal.Signals(-code).name
        hint = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"the engine process was ended by {name}{hint}"

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _give_up(self, error: VllmError) -> None:
        """The model cannot be loaded: at the start that is the caller's to know, later it is tried again."""
        if self._loaded is not None and not self._loaded.done():
            self.state = "stopping"
            self._loaded.set_exception(error)
        else:
            logger.error("the model cannot be loaded again: %s", error)

    def _frozen(self, pid: int) -> str | None:
        """Why a living process does not answer: it was stopped, or has work and neither speaks nor computes."""
        state, cpu_seconds = _process_times(pid)
        if state in "Tt":
            return "the engine process is stopped"
        now = time.monotonic()
        if not self._mailboxes or now - self._heard < SILENCE or not state:
            self._seen, self._cpu_seconds = now, cpu_seconds
            return None
        if cpu_seconds > self._cpu_seconds:
            self._seen, self._cpu_seconds = now, cpu_seconds
        elif now - self._seen > SILENCE:
            return f"the engine process has not computed for {now - self._seen:.0f} s"
        return None


class _Link(asyncio.Protocol):
    """The socket to an engine process."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._frames = wire.Frames(wire.ToFront)
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by name

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            self._engine.hear(message)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, message: wire.ToEngine) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.framed(message))


class _Mailbox:
    """Outputs of one request that its reader has not taken yet."""

    __slots__ = ("_error", "_outputs", "_waiter", "ended")

    def __init__(self) -> None:
        self._outputs: list[Output] = []
        self._error: VllmError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        """Nothing will come any more."""

    def put(self, output: Output) -> None:
        self._outputs.append(output)
        self.ended = output.finished
        self._wake()

    def fail(self, error: VllmError) -> None:
        self._error, self.ended = error, True
        self._wake()

    async def take(self) -> list[Output]:
        """Wait for outputs, and return all that are there.  Raises the error that ended the request."""
        while not self._outputs:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        outputs, self._outputs = self._outputs, []
        return outputs

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _process_times(pid: int) -> tuple[str, float]:
    """Return a process's state as a letter and its processor time in ticks; ("", 0) where the system doesn't say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], float(fields[11]) + float(fields[12])
