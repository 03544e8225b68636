"""What the system says of processes and of the machine's memory.  Read from /proc, so this is for Linux."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RSS_INTERVAL = 0.05
PSS_EVERY = 10  # the system walks all page tables to tell it
KIB = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, summed over processes."""

    rss: int
    """Resident; what processes share counts in each of them."""
    pss: int
    """Resident; what n processes share counts 1/n in each of them.  Pages of a file count like any other."""
    anonymous: int
    """The part of it that no file backs and that the system could not drop."""


def members_of(session: int) -> list[int]:
    """The processes of a session, which is a child started as its leader and all that it started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        state, *fields = _stat(int(path.name))
        if state not in "ZX" and int(fields[2]) == session:
            found.append(int(path.name))
    return found


def is_stopped(pid: int) -> bool:
    """Whether a process stands still, or is no more."""
    return _stat(pid)[0] in "TtZX"


def resident(session: int) -> int:
    """Resident bytes of a session."""
    total = 0
    for pid in members_of(session):
        total += _kib(Path(f"/proc/{pid}/status"), ("VmRSS",))["VmRSS"]
    return total


def proportional(session: int) -> tuple[int, int]:
    """Proportional bytes of a session, and how many of them are anonymous."""
    pss = anonymous = 0
    for pid in members_of(session):
        found = _kib(Path(f"/proc/{pid}/smaps_rollup"), ("Pss", "Pss_Anon"))
        pss += found["Pss"]
        anonymous += found["Pss_Anon"]
    return pss, anonymous


def available() -> int:
    """Bytes of main memory that can be taken without swapping."""
    return _kib(Path("/proc/meminfo"), ("MemAvailable",))["MemAvailable"]


class PeakMemory:
    """Watches a session while the `with` block runs; `peak` holds the largest values seen, each for itself."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.peak = Memory(0, 0, 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look(0)

    def _watch(self) -> None:
        turn = 0
        while not self._done.wait(RSS_INTERVAL):
            self._look(turn)
            turn += 1

    def _look(self, turn: int) -> None:
        rss = resident(self.session)
        pss, anonymous = proportional(self.session) if turn % PSS_EVERY == 0 else (0, 0)
        peak = self.peak
        self.peak = Memory(max(peak.rss, rss), max(peak.pss, pss), max(peak.anonymous, anonymous))


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and so on, as the system numbers them; state X where there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["X"]


def _kib(path: Path, names: tuple[str, ...]) -> dict[str, int]:
    """Lines like "VmRSS:  123 kB" as bytes; 0 where a process has just ended."""
    found = dict.fromkeys(names, 0)
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = int(value.split()[0]) * KIB
    return found
