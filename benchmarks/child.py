"""The process that an engine runs in:  python benchmarks/child.py ADAPTER

It is started by its path and in an environment that need not know this repository, so it takes its adapter from the
folder beside it and then forgets where that was: what a peer imports afterwards is the peer's own.
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    protocol = importlib.import_module("adapters.protocol")
    adapter = importlib.import_module(f"adapters.{sys.argv[1]}")
    del sys.path[0]
    protocol.serve(adapter.Engine())


if __name__ == "__main__":
    main()
