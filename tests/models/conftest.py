"""Tiny checkpoints with spread-out random weights, and the few lines of a worker that tests need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import checkpoints
from tests.models.dense_attention import DenseAttention
from vllm.kv_cache.spec import group_layers
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler, PoolingRow
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.loader.config import read_config
from vllm.loader.fill import fill as loader_fill
from vllm.loader.read import tensors, weight_files
from vllm.models.heads import head_files
from vllm.models.registry import build
from vllm.models.tasks import resolve_pooling
from vllm.ops import attention_backend
from vllm.ops.attention import Layout
from vllm.ops.attention_torch import PagedCache
from vllm.ops.matrix import Matrix
from vllm.pooling_params import PoolingParams

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
        found = itertools.chain(tensors(weight_files(folder)), *(_prefixed(*file) for file in head_files(folder)))
        prefixes = (decoder.base_prefix,)
        loader_fill(decoder.windows(), found, decoder.ignored_names, where=str(folder), prefixes=prefixes)

    return fill


def _prefixed(prefix: str, file: Path) -> Iterator[tuple[str, Tensor]]:
    return ((prefix + name, tensor) for name, tensor in tensors([file]))


@pytest.fixture
def compute() -> Callable[..., list[Tensor]]:
    """Run sequences together, `chunk` tokens of each per step, over shuffled blocks.  Return their logits [T, V]."""
    return _compute


@pytest.fixture
def states() -> Callable[..., list[Tensor]]:
    """Run whole sequences together in one step.  Return their hidden states [T, D]."""
    return _states


@pytest.fixture
def pool() -> Callable[..., list[Tensor]]:
    """Run whole sequences together and pool them, as `PoolingParams(**options)` say."""

    def pool(
        model: Transformer, sequences: list[Tensor], types: list[Tensor] | None = None, **options: Any
    ) -> list[Tensor]:
        assert isinstance(model.head, Pooler)
        params = PoolingParams(**options)
        hidden = _states(model, sequences, types)
        if not model.head.pooling.keeps_all(params):
            hidden = [row[-1:] for row in hidden]
        pairs = zip(hidden, sequences, strict=True)
        return model.head([PoolingRow(row, sequence, params) for row, sequence in pairs])

    return pool


@pytest.fixture
def load(fill: Callable[..., None]) -> Callable[..., Transformer]:
    """Load a folder as the engine would: settle what it is for, make it, fill it."""

    def load(folder: Path, max_model_len: int = 40, **options: Any) -> Transformer:
        overrides, dtype = options.pop("hf_overrides", None), options.pop("dtype", torch.float32)
        config = read_config(folder, hf_overrides=overrides)
        pooling = resolve_pooling(config, folder, **options)
        placement = Placement(dtype, torch.device("cpu"))
        model = build(config, placement, max_model_len, pooling, folder).eval()
        fill(model, folder)
        return model

    return load


def _states(model: Transformer, sequences: list[Tensor], types: list[Tensor] | None = None) -> list[Tensor]:
    backend = DenseAttention()
    count = torch.tensor([len(sequence) for sequence in sequences])
    plan = backend.plan()
    table = torch.zeros(len(sequences), 1, dtype=torch.int32)
    plan.place(Layout(count.cumsum(0) - count, torch.zeros_like(count), count, table, BLOCK_SIZE))
    positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    specs = model.cache_specs
    group_of, caches = (0,) * len(specs), (None,) * len(specs)
    token_types = torch.zeros_like(positions) if types is None else torch.cat(types)
    step = Step(torch.cat(sequences), token_types, positions, (plan,), caches, group_of, backend)
    return list(model(step).split(count.tolist()))


def _dtype(model: Transformer) -> torch.dtype:
    return next(module.shape.dtype for module in model.modules() if isinstance(module, Matrix))


def _compute(decoder: Transformer, sequences: list[Tensor], chunk: int | None = None) -> list[Tensor]:
    specs, dtype = decoder.cache_specs, _dtype(decoder)
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
