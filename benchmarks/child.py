"""The process that an engine runs in:  python benchmarks/child.py ADAPTER

It is started by its path and in an environment that need not know this repository, so it takes its adapter from the
folder beside it and then forgets where that was: what a peer imports afterwards is the peer's own.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    die_with_parent()
    protocol = importlib.import_module("adapters.protocol")
    adapter = importlib.import_module(f"adapters.{sys.argv[1]}")
    del sys.path[0]
    protocol.serve(adapter.Engine())


def die_with_parent() -> None:
    """Be killed when the benchmark is: an engine that waits is stopped, and would not notice that nobody asks any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
