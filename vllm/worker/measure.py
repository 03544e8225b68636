"""How much memory a device needs for a step beside weights and cache: found out by taking one."""

from __future__ import annotations

import torch

from vllm.layers.embedding import Head
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.ops.attention import MOST_RECORDED, Layout
from vllm.worker.tables import SlotTables

_LIBRARIES = 256 << 20
"""Bytes for what libraries take when they are first used, and for the recordings themselves."""


@torch.inference_mode()
def measure(model: Transformer, step: Step, tables: SlotTables) -> int:
    """Return the bytes that the largest step takes, its logits included.

    The step is one row of as many tokens as there can be, over caches of one block; what the model computes of it is
    thrown away.
    """
    device = step.token_ids.device
    num_tokens = len(step.token_ids)
    row = torch.zeros(1, dtype=torch.int64)
    longest = min(num_tokens, tables.num_blocks * tables.block_size)
    blocks = torch.zeros(1, -(-longest // tables.block_size), dtype=torch.int32)
    for plan in step.plans:
        plan.place(Layout(row, row, torch.tensor([longest]), blocks, tables.block_size))
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    hidden = model(step.first(longest))
    if isinstance(model.head, Head):
        logits = model.head(hidden[: tables.num_slots]).float()
        logits.sort()  # as much as sampling may need
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    del hidden
    torch.cuda.empty_cache()
    recorded = min(num_tokens, MOST_RECORDED)  # recorded steps have memory of their own
    return peak * (num_tokens + recorded) // longest + _LIBRARIES
