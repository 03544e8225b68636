"""The documented door to adapters, which are not supported: clients import its type, and say None."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """An adapter to compute a request with.  A request that has one is refused."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""
