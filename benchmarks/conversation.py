"""The parent's end of a conversation with an engine in a child process, line by line (`adapters/protocol.py`)."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import is_stopped, members_of

EXIT_SECONDS = 20
PAUSE_SECONDS = 10
TAIL_CHARACTERS = 400


class EngineFailed(Exception):
    """An engine refused, broke or did not answer; the message says how."""


class NotLoaded(EngineFailed):
    """It did not even get ready."""


class Child:
    """An engine in a process of its own, spoken to in lines of JSON (`adapters/protocol.py`)."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.started = time.perf_counter()
        self._printed_before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=log.parent,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        self.session = self._process.pid
        self._unread = b""

    def ask(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send one message and return the answer to it.  Raises EngineFailed."""
        self.send(message)
        return self.receive(seconds)

    def send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise EngineFailed(f"the process ended{self._last_words()}") from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the next answer.  Raises EngineFailed if it is an error, or none comes."""
        reply = json.loads(self._line(time.monotonic() + seconds, seconds))
        if "error" in reply:
            raise EngineFailed(reply["error"])
        return reply["ok"]

    def pause(self) -> None:
        """Stop its processes, and return when they have stopped."""
        deadline = time.monotonic() + PAUSE_SECONDS
        while moving := [pid for pid in members_of(self.session) if not is_stopped(pid)]:
            if time.monotonic() > deadline:
                raise EngineFailed(f"{len(moving)} of its processes do not stop when they are told to")
            self._signal(signal.SIGSTOP)
            time.sleep(0.002)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self, seconds: float = EXIT_SECONDS) -> None:
        """Ask it to exit, and see to it that nothing of it stays.  Calling it twice does no harm."""
        if self._process.returncode is not None and not members_of(self.session):
            return
        self.resume()
        with suppress(EngineFailed):
            self.send({"do": "exit"})
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _signal(self, number: signal.Signals) -> None:
        for pid in members_of(self.session):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _line(self, deadline: float, seconds: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineFailed(f"no answer within {seconds:.0f} s{self._last_words()}")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                self._process.wait()
                raise EngineFailed(f"the process ended with {self._process.returncode}{self._last_words()}")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _last_words(self) -> str:
        printed = self.log.read_bytes()[self._printed_before :].decode(errors="replace").strip()
        return f": …{printed[-TAIL_CHARACTERS:]}" if printed else ""
