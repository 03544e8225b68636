"""Tiny checkpoints with spread-out random weights, and the few lines of a worker that tests need."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import checkpoints
from tests.models.dense_attention import DenseAttention
from vllm.kv_cache.spec import Blocks, CacheSpec, Chunk, State, group_layers
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler, PoolingRow
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.loader.config import read_config
from vllm.loader.files import weight_files
from vllm.loader.fill import fill as loader_fill
from vllm.loader.read import tensors
from vllm.models.heads import head_files
from vllm.models.registry import build, read_as_they_stand
from vllm.models.tasks import resolve_pooling
from vllm.ops import attention_backend, native, record
from vllm.ops.attention import AttentionBackend, CacheBackend, Layout
from vllm.ops.attention_blocks import BlocksCache
from vllm.ops.attention_chunks import ChunkedCache
from vllm.ops.attention_torch import PagedCache, TorchAttention
from vllm.ops.matrix import Matrix
from vllm.ops.native.attention import NativeAttention
from vllm.ops.states import StateMemory
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
def dense_states() -> Callable[..., list[Tensor]]:
    """Run whole sequences together in one step, with the textbook's attention.  Return their hidden states [T, D]."""
    return _states


@pytest.fixture(params=["dense", "torch", "native"])
def states(request: pytest.FixtureRequest) -> Callable[..., list[Tensor]]:
    """The same with each attention there is."""
    if request.param == "native" and native.library() is None:
        pytest.skip("there are no kernels")
    backends = {
        "dense": DenseAttention,
        "torch": lambda: TorchAttention(torch.device("cpu")),
        "native": NativeAttention,
    }
    return partial(_states, backend=backends[request.param]())


@pytest.fixture
def native_states() -> Callable[..., list[Tensor]]:
    """The same with the kernels' attention alone."""
    return partial(_states, backend=NativeAttention())


@pytest.fixture
def recorded() -> Callable[..., list[Tensor]]:
    """The same with the kernels' attention, recorded for more tokens and then run for these."""
    return partial(_states, backend=NativeAttention(), forward=_recorded)


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
        config = read_config(folder, hf_overrides=overrides, own_architectures=read_as_they_stand())
        pooling = resolve_pooling(config, folder, **options)
        placement = Placement(dtype, torch.device("cpu"))
        model = build(config, placement, max_model_len, pooling, folder).eval()
        fill(model, folder)
        return model

    return load


def _states(
    model: Transformer,
    sequences: list[Tensor],
    types: list[Tensor] | None = None,
    *,
    backend: Any = None,
    forward: Callable[[Transformer, Step], Tensor] = Transformer.__call__,
) -> list[Tensor]:
    """Run whole sequences in one step.  Skips the test where the backend can't."""
    backend = backend or DenseAttention()
    if not model.cache_specs and not isinstance(backend, DenseAttention):
        pytest.skip("the model has no attention of ours")
    for spec in model.cache_specs:
        if reason := backend.refuses(spec, _dtype(model), BLOCK_SIZE):
            pytest.skip(reason)
    memory = Memory(model, backend, len(sequences), max(map(len, sequences)))
    count = torch.tensor([len(sequence) for sequence in sequences])
    memory.place(torch.arange(len(sequences)), torch.zeros_like(count), count)
    positions = torch.cat([torch.arange(len(sequence)) for sequence in sequences])
    token_types = torch.zeros_like(positions) if types is None else torch.cat(types)
    hidden = forward(model, memory.step(torch.cat(sequences), token_types, positions))
    return list(hidden.split(count.tolist()))


def _recorded(model: Transformer, step: Step) -> Tensor:
    """Record a model with room for three more tokens, whatever they are, then run it for those of the step."""
    spare = torch.ones(3, dtype=torch.int64)
    fields = ("token_ids", "token_types", "positions")
    longer = replace(step, **{name: torch.cat((getattr(step, name), spare)) for name in fields})
    program = record(lambda rows: model(longer.first(rows)), len(longer.token_ids))
    assert program is not None
    return program.run(len(step.token_ids))


def _dtype(model: Transformer) -> torch.dtype:
    return next((module.shape.dtype for module in model.modules() if isinstance(module, Matrix)), torch.float32)


def _compute(decoder: Transformer, sequences: list[Tensor], chunk: int | None = None) -> list[Tensor]:
    paged = [spec for spec in decoder.cache_specs if not isinstance(spec, State)]
    backend = attention_backend(paged, _dtype(decoder), torch.device("cpu"), BLOCK_SIZE)
    longest = max(map(len, sequences))
    memory = Memory(decoder, backend, len(sequences), longest)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    for start in range(0, longest, chunk or longest):
        rows = [r for r, sequence in enumerate(sequences) if start < len(sequence)]
        parts = [sequences[r][start : start + (chunk or longest)] for r in rows]
        count = torch.tensor([len(part) for part in parts])
        memory.place(torch.tensor(rows), torch.full_like(count, start), count)
        positions = torch.cat([torch.arange(start, start + len(part)) for part in parts])
        hidden = decoder(memory.step(torch.cat(parts), torch.zeros_like(positions), positions))
        for r, part in zip(rows, decoder.head(hidden).split(count.tolist()), strict=True):
            logits[r].append(part)
    return [torch.cat(parts) for parts in logits]


class Memory:
    """Caches, and shuffled blocks for each row."""

    def __init__(self, model: Transformer, backend: AttentionBackend, num_rows: int, longest: int) -> None:
        specs, dtype = model.cache_specs, _dtype(model)
        groups = group_layers(specs)
        per_row = -(-longest // BLOCK_SIZE)
        num_blocks = 1 + per_row * num_rows
        self.backend = backend
        self.group_of = tuple(next(g for g, group in enumerate(groups) if i in group.layers) for i in range(len(specs)))
        self.caches = tuple(self.memory(spec).allocate(spec, num_blocks, BLOCK_SIZE, dtype) for spec in specs)
        for cache in self.caches:  # no result may depend on what was in a block before
            for memory in _memories(cache, dtype):
                memory.fill_(torch.nan)
        self.tables = [(torch.randperm(num_blocks - 1) + 1).view(num_rows, per_row).int() for _ in groups]
        sizes = (num_rows, num_rows * longest, per_row)
        self.plans = tuple(self.memory(group.spec).plan(*sizes) for group in groups)

    def memory(self, spec: CacheSpec) -> CacheBackend:
        if isinstance(spec, Chunk):
            return ChunkedCache(self.backend, spec.size, spec.before)
        if isinstance(spec, Blocks):
            return BlocksCache(self.backend, spec)
        return StateMemory(torch.device("cpu")) if isinstance(spec, State) else self.backend

    def place(self, rows: Tensor, start: Tensor, count: Tensor) -> None:
        """Plan a step of `count` tokens from `start` on of each of the rows."""
        for plan, table in zip(self.plans, self.tables, strict=True):
            plan.place(Layout(count.cumsum(0) - count, start, count, table[rows], BLOCK_SIZE))

    def step(self, token_ids: Tensor, token_types: Tensor, positions: Tensor) -> Step:
        return Step(token_ids, token_types, positions, self.plans, self.caches, self.group_of, self.backend)


def _memories(cache: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
    if isinstance(cache, PagedCache):
        return cache.keys, cache.values
    if isinstance(cache, tuple):
        return cache
    return () if cache is None else (cache.pages.view(dtype),)
