"""`python -m vllm.entrypoints.cli`."""

import sys

from vllm.entrypoints.cli import main

if __name__ == "__main__":
    sys.exit(main())
