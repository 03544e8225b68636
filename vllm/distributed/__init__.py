"""The documented door to what several processes share; clients clean it up when they are done with an `LLM`."""

from __future__ import annotations

import gc

__all__ = ["cleanup_dist_env_and_memory"]


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Give back what models hold that nobody refers to any more.  An `LLM` ends its processes by itself."""
    gc.collect()
