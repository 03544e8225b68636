"""A model that several processes compute together, each with a device of its own.

The first of them is the caller's; the others are started by it:  python -m vllm.engine.ranks FD

    first process ── Join, then a Compute for each batch ──▶ every other

All are told the same batches and compute them with their share of the weights; the results are the same everywhere, and only
the first one's are looked at.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from vllm.config import EngineArgs, EngineConfig
from vllm.engine.executor import Failed, InProcessExecutor, Pending
from vllm.engine.process import die_with_parent
from vllm.engine.setup import resolve
from vllm.engine.wire import HEADER, Frames, options_of
from vllm.errors import ConfigError, EngineDeadError, ModelError, RequestError
from vllm.logging import get_logger
from vllm.messages import Batch, StepOutput
from vllm.ops.parallel import abandon, leave
from vllm.worker.load import load

logger = get_logger(__name__)
_CHUNK = 1 << 20
_END_SECONDS = 10.0


class Join(msgspec.Struct, tag=0, array_like=True):
    """Load the model.  The first message."""

    options: dict[str, Any]  # fields of EngineArgs
    rank: int
    meeting: str  # a file by which the processes find each other


class Compute(msgspec.Struct, tag=1, array_like=True):
    """Compute a batch."""

    batch: Batch


Message = Join | Compute


class ParallelExecutor(InProcessExecutor):
    """Computes in the calling thread and in processes of its own."""

    def __init__(self, config: EngineConfig, progress: bool = False) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vllm-")
        self._cause: str | None = None
        self._closing = False
        meeting = str(Path(self._folder.name, "meeting"))
        self._ranks = [_start(config, rank, meeting) for rank in range(1, config.tensor_parallel_size)]
        for rank, (process, _) in enumerate(self._ranks, 1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()
        try:
            super().__init__(config, progress, meeting)
        except (ConfigError, ModelError):  # all of them find out
            self.stop()
            raise
        except Exception as error:
            self.stop()
            raise EngineDeadError(self._cause) from error if self._cause else error

    def execute(self, batch: Batch) -> Pending:
        try:
            self._tell(batch)
        except BaseException as error:
            return Failed(error)
        return _Watched(super().execute(batch), self)

    def check(self) -> None:
        """Raise EngineDeadError if one of the processes has ended."""
        if self._cause is not None:
            raise EngineDeadError(self._cause)

    def stop(self) -> None:
        """Drop model and cache, and end the other processes."""
        self._closing = True
        if hasattr(self, "runner"):
            super().stop()
        for process, connection in self._ranks:
            connection.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
        leave(self.group)
        self._folder.cleanup()

    def _tell(self, batch: Batch) -> None:
        self.check()
        try:
            frame = _framed(Compute(batch))
        except TypeError as error:
            raise RequestError(
                "logits_processors are functions of this process, which the others can't call; leave them out, or use "
                "tensor_parallel_size=1",
                "logits_processors",
            ) from error
        for _, connection in self._ranks:
            connection.sendall(frame)

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of a process.  Where it is not wanted, what the others compute can't come to an end either."""
        status = process.wait()
        if not self._closing:
            self._cause = f"process {rank} of {len(self._ranks) + 1} that compute the model ended with status {status}"
            logger.error("%s", self._cause)
            abandon(self.group)


class _Watched:
    """A batch that comes to nothing if one of the processes ends."""

    def __init__(self, pending: Pending, executor: ParallelExecutor) -> None:
        self._pending, self._executor = pending, executor

    def result(self) -> StepOutput:
        try:
            output = self._pending.result()
        except Exception:
            self._executor.check()
            raise
        self._executor.check()
        return output


def _start(config: EngineConfig, rank: int, meeting: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "vllm.engine.ranks", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    ours.sendall(_framed(Join(options_of(config.args), rank, meeting)))
    return process, ours


def _framed(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEADER, "little") + body


def _messages(connection: socket.socket) -> Iterator[Message]:
    """Yield messages until the other end is closed."""
    frames = Frames(Message)
    while data := connection.recv(_CHUNK):
        yield from frames.feed(data)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    logging.getLogger("vllm").setLevel(logging.WARNING)  # the first process says what there is to say
    messages = _messages(socket.socket(fileno=int(sys.argv[1])))
    first = next(messages, None)
    if not isinstance(first, Join):
        return
    try:
        config, _ = resolve(EngineArgs(**first.options | {"skip_tokenizer_init": True}))
        runner = load(config, progress=False, rank=first.rank, meeting=first.meeting).runner
    except (ConfigError, ModelError):
        sys.exit(1)  # the first process finds out too, and says so
    for message in messages:
        assert isinstance(message, Compute), "only the first message is another"
        runner.execute(message.batch)
    os._exit(0)  # the device may be busy with what nobody wants any more


if __name__ == "__main__":
    main()
