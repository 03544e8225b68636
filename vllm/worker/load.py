"""From an EngineConfig to a ModelRunner that is ready: plan the memory, build the model, fill its windows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm.config import CacheConfig, EngineConfig, SchedulerConfig
from vllm.device import free_memory
from vllm.errors import ConfigError
from vllm.kv_cache.spec import Blocks, CacheGroup, CacheSpec, Chunk, Cross, Scratch, State, group_layers
from vllm.layers.cross import Encoder
from vllm.layers.embedding import Head
from vllm.layers.media import Seeing
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.loader.dummy import fill_dummy
from vllm.loader.files import all_weight_files
from vllm.loader.fill import fill
from vllm.loader.read import check_files, tensors
from vllm.logging import get_logger
from vllm.models.heads import head_files
from vllm.models.media.build import text_tensors
from vllm.models.registry import build
from vllm.ops import attention_backend, state_memory
from vllm.ops.attention import AttentionBackend, CacheBackend
from vllm.ops.attention_blocks import BlocksCache
from vllm.ops.attention_chunks import ChunkedCache
from vllm.ops.matrix import Matrix
from vllm.ops.native import set_threads
from vllm.ops.parallel import Group, join
from vllm.ops.states import StateMemory
from vllm.sampling.device import DeviceSampler
from vllm.sampling.sampler import Sampler
from vllm.worker.forward import HiddenStates, Logits
from vllm.worker.generation import Generation
from vllm.worker.measure import measure
from vllm.worker.media import MediaStates
from vllm.worker.memory import MemoryPlan, plan_memory, plan_own_cache
from vllm.worker.pictures import PictureStates, layers_of
from vllm.worker.pooling import PooledStates
from vllm.worker.runner import ModelRunner, Purpose
from vllm.worker.sources import SourceStates
from vllm.worker.tables import SlotTables
from vllm.worker.tokens import DeviceTokens, HostTokens, Tokens

logger = get_logger(__name__)

_ROOM = 2048
"""Tokens of a step, where those of a prompt's media see each other: one of molmo2's large pictures has 1,300"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready, and what the scheduler must know of it."""

    runner: ModelRunner
    plan: MemoryPlan
    groups: tuple[CacheGroup, ...]
    """Those whose blocks are kept between steps."""
    scheduler: SchedulerConfig
    """The configuration's; prompts that a model must see whole are not split, and of sequences that it keeps by itself no more
    run at a time than there is memory for."""
    group: Group
    """Who computes it together."""


def load(config: EngineConfig, progress: bool, rank: int = 0, meeting: str = "") -> Loaded:
    """Load the model of a configuration.  Raises ConfigError or ModelError before weights are read if it can.

    Where several processes share it this is the one of `rank`, and it meets the others at the file `meeting`.
    """
    began = time.monotonic()
    set_threads(max(1, config.cores // config.tensor_parallel_size) if config.device == "cpu" else config.cores)
    settings = config.model
    dtype, device = getattr(torch, settings.dtype), _device(config, rank)
    group = join(rank, config.tensor_parallel_size, device, meeting)
    is_dummy = settings.load_format == "dummy"
    files = [] if is_dummy else all_weight_files(Path(settings.path), settings.hf_config, settings.load_format)
    check_files(files)
    free = group.least(free_memory(config.device), device)
    placement, folder = Placement(dtype, device, settings.quantization, group), Path(settings.path)
    model = build(
        settings.hf_config,
        placement,
        settings.max_model_len,
        settings.pooling,
        folder,
        impl=settings.model_impl,
        dummy=is_dummy,
    ).eval()
    groups = _Groups.of(model)
    scheduler = _whole_prompts(config.scheduler) if model.whole_prompts else config.scheduler
    media = None
    if model.seeing is not None and model.reads is not None:
        scheduler = _with_media(scheduler, model.seeing)
        media = MediaStates(model, scheduler.max_num_batched_tokens, dtype, device)
    if pictures := layers_of(model):
        pictures[0].sight.make_room(scheduler.max_num_batched_tokens, dtype, device)
    specs = (*model.cache_specs, *model.encoder_cache_specs)
    paged = [spec for spec in specs if not isinstance(spec, State)]
    size = config.cache.block_size
    attention = attention_backend(paged, dtype, device, size, config.cache.quantized, media=bool(pictures))
    memory = _CacheMemory(attention, state_memory(device), config.cache, dtype)
    tables = SlotTables(_tokens(scheduler, device, group), groups.kept + groups.scratch, size)
    tables.whole_media = scheduler.whole_media
    num_scratch = scheduler.max_num_batched_tokens // size + scheduler.max_num_seqs + 1
    if device.type == "cpu":
        activations = _activations(config, scheduler, model)
    else:
        tiny = memory.allocate_shared(groups.all, 1)
        activations = -group.least(-measure(model, _step(tables, memory, groups.all, tiny), tables), device)
        del tiny
    weights = model.num_bytes + (
        media.num_bytes if media else 0 if model.seeing is None else model.seeing.tower.num_bytes
    )
    activations += sum(num_scratch * memory.block_bytes(group) for group in groups.scratch)
    plan, num_source_blocks = _plan(scheduler, model, groups, memory, weights, activations, free)
    if model.remembers:
        scheduler = replace(scheduler, max_num_seqs=plan.num_seqs)
    if groups.cross:
        scheduler = replace(scheduler, source_tokens=(num_source_blocks[0] - 1) * size)
    _tell(config, plan)
    _fill(config, model, files, progress)
    caches = memory.allocate(groups.kept, plan.num_blocks) | memory.allocate_shared(groups.scratch, num_scratch)
    caches |= memory.allocate(groups.cross, num_source_blocks)
    hidden = HiddenStates(model, _step(tables, memory, groups.all, caches))
    sources = _sources(model, hidden.step, memory, scheduler, num_source_blocks[0]) if groups.cross else None
    backends, purpose = tuple(memory.backend(group.spec) for group in groups.kept), _purpose(config, hidden, tables)
    runner = ModelRunner(groups.kept, hidden.step.caches, backends, tables, hidden, purpose, media or sources)
    logger.info("ready after %.2f s", time.monotonic() - began)
    return Loaded(runner, plan, groups.kept, scheduler, group)


def _tell(config: EngineConfig, plan: MemoryPlan) -> None:
    """Log what is loaded, and into how much memory."""
    settings = config.model
    where = f"{config.cores} threads" if config.device == "cpu" else config.device
    name = settings.model or "default model"
    logger.info("%s: %s, %s, %s; %s", name, settings.architecture, settings.dtype, where, plan)


@dataclass(frozen=True, slots=True)
class _Groups:
    """A model's cache groups, by whose their blocks are."""

    kept: tuple[CacheGroup, ...]
    """Of sequences"""
    scratch: tuple[CacheGroup, ...]
    """Of a step"""
    cross: tuple[CacheGroup, ...]
    """Of sources; one at most"""

    @classmethod
    def of(cls, model: Transformer) -> _Groups:
        groups = group_layers(model.cache_specs)
        return cls(
            tuple(group for group in groups if not isinstance(group.spec, Scratch | Cross)),
            tuple(group for group in groups if isinstance(group.spec, Scratch)),
            tuple(group for group in groups if isinstance(group.spec, Cross)),
        )

    @property
    def all(self) -> tuple[CacheGroup, ...]:
        """All of them, in the order of a step's plans."""
        return self.kept + self.scratch + self.cross


def _plan(
    scheduler: SchedulerConfig,
    model: Transformer,
    groups: _Groups,
    memory: _CacheMemory,
    weights: int,
    activations: int,
    free: int,
) -> tuple[MemoryPlan, tuple[int, ...]]:
    """Share out the memory; return how many blocks are for sources, too, where there are any."""
    if model.remembers:
        own = plan_own_cache(memory.config, scheduler, model.sequence_bytes, weights, activations, free)
        return own, ()
    activations += _encoder_scratch(model, memory, scheduler)
    planned = groups.kept + groups.cross
    block_bytes = [memory.block_bytes(group) * len(group.layers) for group in planned]
    plan = plan_memory(planned, memory.config, scheduler, block_bytes, weights, activations, free)
    split = len(groups.kept)
    return replace(plan, num_blocks=plan.num_blocks[:split]), plan.num_blocks[split:]


def _device(config: EngineConfig, rank: int) -> torch.device:
    """Return the device of a process, and make it the one that is used where none is named."""
    if config.device == "cpu":
        return torch.device("cpu")
    if rank >= torch.cuda.device_count():
        raise ConfigError(
            f"tensor_parallel_size={config.tensor_parallel_size} needs as many GPUs; there are {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(rank)
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in the convolutions of towers too
    return torch.device("cuda", rank)


def _tokens(scheduler: SchedulerConfig, device: torch.device, group: Group) -> Tokens:
    sizes = (scheduler.max_num_seqs, scheduler.max_model_len, scheduler.max_num_batched_tokens)
    return HostTokens(*sizes) if device.type == "cpu" else DeviceTokens(*sizes, device, group)


def _whole_prompts(scheduler: SchedulerConfig) -> SchedulerConfig:
    """Each token of a prompt sees all of it, so a step must have room for the longest prompt."""
    if scheduler.max_num_batched_tokens < scheduler.max_model_len and scheduler.chose_step_tokens:
        raise ConfigError(
            f"max_num_batched_tokens={scheduler.max_num_batched_tokens} is less than "
            f"max_model_len={scheduler.max_model_len}, and this model sees prompts whole; raise it or lower max_model_len"
        )
    step_tokens = max(scheduler.max_num_batched_tokens, scheduler.max_model_len)
    return replace(scheduler, chunked_prefill=False, max_num_batched_tokens=step_tokens)


def _with_media(scheduler: SchedulerConfig, seeing: Seeing) -> SchedulerConfig:
    """Tokens of media that see each other are computed in one step, which has room for some unless it is said how much it has."""
    roomy = seeing.across and not scheduler.chose_step_tokens
    least = min(scheduler.max_model_len, _ROOM) if roomy else 0
    step_tokens = max(scheduler.max_num_batched_tokens, least)
    return replace(scheduler, whole_media=seeing.whole, max_num_batched_tokens=step_tokens)


def _step(tables: SlotTables, memory: _CacheMemory, groups: tuple[CacheGroup, ...], caches: dict[int, Any]) -> Step:
    """Make the buffers that every step is written to."""
    return Step(
        tables.store.token_ids,
        tables.store.token_types,
        tables.store.positions,
        tuple(
            memory.backend(group.spec).plan(
                tables.num_slots, len(tables.store.token_ids), _most_blocks(group.spec, tables)
            )
            for group in groups
        ),
        *_by_layer(groups, caches),
        memory.attention,
        tables.rows,
    )


def _by_layer(groups: tuple[CacheGroup, ...], caches: dict[int, Any]) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """Return the layers' caches and the number of each one's group, in call order."""
    group_of = {layer: number for number, group in enumerate(groups) for layer in group.layers}
    return tuple(caches[layer] for layer in range(len(caches))), tuple(group_of[layer] for layer in range(len(caches)))


def _most_blocks(spec: CacheSpec, tables: SlotTables) -> int:
    """Return how many entries a block table has."""
    return -(-spec.size // tables.block_size) if isinstance(spec, Cross) else tables.num_blocks


def _sources(
    model: Transformer, step: Step, memory: _CacheMemory, scheduler: SchedulerConfig, num_blocks: int
) -> SourceStates | PictureStates:
    """Make what has sources encoded, as many tokens of them in a step as it has tokens itself, or one source."""
    if model.encoder is None:
        return PictureStates(model, step, num_blocks, memory.config.block_size)
    size, groups = memory.config.block_size, group_layers(model.encoder_cache_specs)
    most, most_sources, blocks = _encoder_sizes(model.encoder, memory, scheduler)
    caches, group_of = _by_layer(groups, memory.allocate_shared(groups, blocks))
    plans = tuple(memory.attention.plan(most_sources, most, -(-model.encoder.longest // size)) for _ in groups)
    encoder = replace(step, plans=plans, caches=caches, group_of=group_of)
    return SourceStates(model, step, num_blocks, size, encoder)


def _encoder_sizes(encoder: Encoder, memory: _CacheMemory, scheduler: SchedulerConfig) -> tuple[int, int, int]:
    """Return the most tokens of a step of an encoder, the most sources, and the blocks that these need."""
    most = max(scheduler.max_num_batched_tokens, encoder.longest)
    most_sources = min(most, scheduler.max_num_seqs)
    return most, most_sources, most // memory.config.block_size + most_sources + 1


def _encoder_scratch(model: Transformer, memory: _CacheMemory, scheduler: SchedulerConfig) -> int:
    """Return the bytes of the caches of a step of its encoder, if it has one."""
    if model.encoder is None:
        return 0
    blocks = _encoder_sizes(model.encoder, memory, scheduler)[2]
    return sum(blocks * memory.block_bytes(group) for group in group_layers(model.encoder_cache_specs))


def _purpose(config: EngineConfig, hidden: HiddenStates, tables: SlotTables) -> Purpose:
    """Make what turns hidden states into results."""
    settings, head = config.model, hidden.model.head
    if settings.pooling is not None:
        assert isinstance(head, Pooler), "a model that pools was built without a pooler"
        return PooledStates(head, settings.pooling, tables)
    assert isinstance(head, Head), "a model that generates was built without a vocabulary"
    kind = Sampler if config.device == "cpu" else DeviceSampler
    sampler = kind(
        tables.num_slots,
        settings.vocab_size,
        torch.device(config.device),
        max_logprobs=settings.max_logprobs,
        logprobs_mode=settings.logprobs_mode,
    )
    return Generation(Logits(head, hidden, tables.num_slots), tables, sampler)


def _fill(config: EngineConfig, model: Transformer, files: list[Path], progress: bool) -> None:
    if model.is_complete:  # it has read them itself
        return
    if not files:
        fill_dummy(model.windows(), seed=config.model.seed, device=config.device)
        return
    found: Iterator[tuple[str, Tensor]] = itertools.chain(tensors(files, progress=progress), _head_tensors(config))
    if model.seeing is not None:
        found = text_tensors(found, model.seeing.tower.width, {window.name for window in model.windows()})
    fill(model.windows(), found, model.ignored_names, where=config.model.path, prefixes=(model.base_prefix,))


def _head_tensors(config: EngineConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield what sentence-transformers keep beside the model."""
    if config.model.pooling is not None:
        for prefix, file in head_files(Path(config.model.path)):
            for name, tensor in tensors([file]):
                yield prefix + name, tensor


@dataclass(frozen=True, slots=True)
class _CacheMemory:
    """The layers' caches before they are made."""

    attention: AttentionBackend
    states: StateMemory
    config: CacheConfig
    dtype: torch.dtype

    def backend(self, spec: CacheSpec) -> CacheBackend:
        """Return what makes the caches of a spec."""
        if isinstance(spec, Chunk):
            return ChunkedCache(self.attention, spec.size, spec.before)
        if isinstance(spec, Blocks):
            return BlocksCache(self.attention, spec)
        return self.states if isinstance(spec, State) else self.attention

    def block_bytes(self, group: CacheGroup) -> int:
        """Return the bytes of a block of one of a group's layers."""
        backend = self.backend(group.spec)
        return backend.block_bytes(group.spec, self.config.block_size, self.dtype, self.config.quantized)

    def allocate(self, groups: tuple[CacheGroup, ...], num_blocks: tuple[int, ...]) -> dict[int, Any]:
        """Make one cache per attention layer, by its number in call order."""
        pairs = zip(groups, num_blocks, strict=True)
        return {layer: self._allocate(group, count) for group, count in pairs for layer in group.layers}

    def allocate_shared(self, groups: tuple[CacheGroup, ...], num_blocks: int) -> dict[int, Any]:
        """Make one cache per group, which its layers use one after another."""
        made = [(group, self._allocate(group, num_blocks)) for group in groups]
        return {layer: cache for group, cache in made for layer in group.layers}

    def _allocate(self, group: CacheGroup, num_blocks: int) -> Any:
        config = self.config
        return self.backend(group.spec).allocate(
            group.spec, num_blocks, config.block_size, self.dtype, config.quantized
        )


def _activations(config: EngineConfig, scheduler: SchedulerConfig, model: Transformer) -> int:
    """Bytes of the largest step: a few float32 copies of its widest layer, and of its logits."""
    parts = [model.blocks] if model.encoder is None else [model.blocks, model.encoder]
    widths = [matrix.shape.rows for part in parts for matrix in part.modules() if isinstance(matrix, Matrix)]
    text_config = config.model.hf_config.get_text_config()
    widest = max(widths, default=8 * text_config.hidden_size)  # of a module that isn't ours: a guess
    widest += config.model.vocab_size if model.is_complete else 0
    rows = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens) if config.model.pooling is None else 0
    tokens = max(scheduler.max_num_batched_tokens, 0 if model.encoder is None else model.encoder.longest)
    return 4 * (6 * widest * tokens + 2 * config.model.vocab_size * rows)
