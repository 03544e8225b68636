"""`python -m vllm.entrypoints.openai.api_server`: the older way to say `vllm serve`."""

from __future__ import annotations

import sys

from vllm.entrypoints.cli import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
