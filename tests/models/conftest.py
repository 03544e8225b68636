"""Tiny checkpoints with spread-out random weights, and the few lines of a worker that tests need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import checkpoints
from vllm.kv_cache.spec import group_layers
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.loader.fill import fill as loader_fill
from vllm.loader.read import tensors, weight_files
from vllm.ops import attention_backend
from vllm.ops.attention import Layout
from vllm.ops.attention_torch import PagedCache

BLOCK_SIZE = 16


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture
def spread() -> Callable[[torch.nn.Module], torch.nn.Module]:
    return checkpoints.spread


@pytest.fixture
def fill() -> Callable[[Transformer, Path], None]:
    """Load a folder's weights; every window must be filled, every name explained."""

    def fill(decoder: Transformer, folder: Path) -> None:
        found = tensors(weight_files(folder))
        prefixes = (decoder.base_prefix,)
        loader_fill(decoder.windows(), found, decoder.ignored_names, where=str(folder), prefixes=prefixes)

    return fill


@pytest.fixture
def compute() -> Callable[..., list[Tensor]]:
    """Run sequences together, `chunk` tokens of each per step, over shuffled blocks.  Return their logits [T, V]."""
    return _compute


def _compute(decoder: Transformer, sequences: list[Tensor], chunk: int | None = None) -> list[Tensor]:
    specs, dtype = decoder.cache_specs, decoder.entry.tokens.matrix.shape.dtype
    backend = attention_backend(specs, dtype, torch.device("cpu"), BLOCK_SIZE)
    groups = group_layers(specs)
    group_of = tuple(next(g for g, group in enumerate(groups) if i in group.layers) for i in range(len(specs)))
    longest = max(map(len, sequences))
    per_row = -(-longest // BLOCK_SIZE)
    num_blocks = 1 + per_row * len(sequences)
    caches = tuple(backend.allocate(spec, num_blocks, BLOCK_SIZE, dtype) for spec in specs)
    for cache in caches:  # no result may depend on what was in a block before
        for memory in (cache.keys, cache.values) if isinstance(cache, PagedCache) else (cache.pages.view(dtype),):
            memory.fill_(torch.nan)
    tables = [(torch.randperm(num_blocks - 1) + 1).view(len(sequences), per_row).int() for _ in groups]
    plans = tuple(backend.plan() for _ in groups)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for start in range(0, longest, chunk or longest):
        rows = [r for r, sequence in enumerate(sequences) if start < len(sequence)]
        parts = [sequences[r][start : start + (chunk or longest)] for r in rows]
        count = torch.tensor([len(part) for part in parts])
        layout = (count.cumsum(0) - count, torch.full_like(count, start), count)
        for plan, table in zip(plans, tables, strict=True):
            plan.place(Layout(*layout, table[rows], BLOCK_SIZE))
        positions = torch.cat([torch.arange(start, start + len(part)) for part in parts])
        hidden = decoder(
            Step(torch.cat(parts), torch.zeros_like(positions), positions, plans, caches, group_of, backend)
        )
        for r, part in zip(rows, decoder.head(hidden).split(count.tolist()), strict=True):
            logits[r].append(part)
    return [torch.cat(parts) for parts in logits]
