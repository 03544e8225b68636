"""The engine in a process of its own:  python -m vllm.engine.process FD

FD is its end of a socket pair.  It loads what the first message says, then takes steps while there is work and sleeps
while there is none.  It ends when told to, when the other end is gone, and, where the system can see to that, with its
parent.  Signals of a terminal or a service manager are for the front, which says what is to be done.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

from vllm.config import EngineArgs
from vllm.engine import wire
from vllm.engine.core import EngineCore
from vllm.engine.setup import resolve
from vllm.errors import ConfigError, ModelError, RequestError
from vllm.garbage import no_collections
from vllm.logging import get_logger

logger = get_logger(__name__)
_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 20


class Gone(Exception):
    """The other end of the socket is closed."""


class EngineProcess:
    """One end of the conversation, and the engine that it is about."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._frames = wire.Frames(wire.ToEngine)

    def run(self) -> None:
        """Serve until told to stop.  Raises Gone if nobody is there any more."""
        core = self._load()
        if core is None:
            return
        gc.freeze()  # what is there now stays
        while True:
            messages = self._receive(wait=not core.has_work)
            for message in messages:
                if isinstance(message, wire.Stop):
                    return
                self._take(core, message)
            if core.has_work:
                self._step(core)
            elif messages:  # no step brings the news that nothing runs any more
                self._send(wire.News([], core.stats()))

    def _load(self) -> EngineCore | None:
        """Load the model, and say how it went."""
        began = time.monotonic()
        load: wire.Load | None = None
        while load is None:
            load = next(iter(self._receive(wait=True)), None)
        try:
            with no_collections():
                args = EngineArgs(**load.options)
                config, _ = resolve(replace(args, skip_tokenizer_init=True))
                core = EngineCore.load(replace(config, cache=replace(config.cache, free_bytes=load.free_bytes)))
        except (ConfigError, ModelError) as error:
            kind = "config" if isinstance(error, ConfigError) else "model"
            self._send(wire.Failed(kind, str(error)))
            return None
        except Exception as error:
            traceback.print_exc()
            self._send(wire.Failed("fault", f"{type(error).__name__}: {error}"))
            return None
        assert core.executor is not None
        plan = core.executor.plan
        seconds = time.monotonic() - began
        self._send(wire.Ready(str(plan), plan.num_tokens, sum(plan.num_blocks), plan.num_bytes, plan.free, seconds))
        return core

    def _take(self, core: EngineCore, message: wire.ToEngine) -> None:
        match message:
            case wire.Add(request):
                try:
                    core.add(request)
                except RequestError as error:
                    self._send(wire.Refused(request.id, str(error), error.param))
            case wire.Abort(names):
                for name in names:
                    core.scheduler.abort(name)
            case wire.Finish(name, index):
                core.scheduler.finish(name, index)
            case wire.ResetPrefixCache():
                core.scheduler.cache.reset()

    def _step(self, core: EngineCore) -> None:
        try:
            events = core.step()
        except Exception as error:
            logger.exception("a step failed; its requests are tried again in smaller groups")
            events = core.retry(error)
        self._send(wire.News(events, core.stats()))

    def _receive(self, wait: bool) -> list[Any]:
        """Return the messages that are there; if `wait`, sleep until one is."""
        found: list[Any] = []
        while self._poll.poll(None if wait and not found else 0):
            data = self._connection.recv(_CHUNK)
            if not data:
                raise Gone
            found += self._frames.feed(data)
        return found

    def _send(self, message: wire.ToFront) -> None:
        try:
            self._connection.sendall(wire.framed(message))
        except OSError:
            raise Gone from None


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    root = logging.getLogger("vllm")
    if root.level in (logging.NOTSET, logging.INFO):  # the front says what there is to say, in one line
        root.setLevel(logging.WARNING)
    connection = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(Gone):
        EngineProcess(connection).run()


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends, however that happens.  (Linux; elsewhere the socket tells.)"""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
