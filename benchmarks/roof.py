"""The roof: what the machine can read and compute at most, measured beside every measurement by `roof.c`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

from benchmarks.floor import Roof

SOURCE = Path(__file__).with_name("roof.c")
MEGABYTES = 512  # many times the caches


class NoCompiler(Exception):
    """There is no roof without a C compiler; the message says what was missing."""


def compiler() -> str | None:
    return next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def build(work: Path) -> Path:
    """Compile for this very machine and return the program.  Raises NoCompiler."""
    found = compiler()
    if found is None:
        raise NoCompiler("no C compiler (cc, gcc or clang) was found, so the floor is left out")
    program = work.absolute() / "roof"
    program.parent.mkdir(parents=True, exist_ok=True)
    command = [found, "-O3", "-march=native", "-pthread", str(SOURCE), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoCompiler(f"{found} could not compile roof.c, so the floor is left out: {done.stderr.strip()[-300:]}")
    return program


class RoofMeter:
    """The running program.  It sleeps until it is asked."""

    def __init__(self, program: Path, threads: int) -> None:
        command = [str(program), str(threads), str(MEGABYTES)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.measure()  # the first time, the clock of the cores is still low

    def measure(self) -> Roof:
        """Take about a third of a second to measure."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Roof(**json.loads(self._process.stdout.readline()))

    def __enter__(self) -> RoofMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
