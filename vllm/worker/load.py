"""From an EngineConfig to a ModelRunner that is ready: plan the memory, build the model, fill its windows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vllm.config import CacheConfig, EngineConfig
from vllm.device import free_memory
from vllm.kv_cache.spec import CacheGroup, group_layers
from vllm.layers.placement import Placement
from vllm.layers.transformer import Transformer
from vllm.loader.dummy import fill_dummy
from vllm.loader.fill import fill
from vllm.loader.read import check_files, tensors, weight_files
from vllm.logging import get_logger
from vllm.models.registry import build
from vllm.ops import attention_backend
from vllm.ops.attention import AttentionBackend
from vllm.ops.matrix import Matrix
from vllm.ops.native import set_threads
from vllm.sampling.sampler import Sampler
from vllm.worker.memory import MemoryPlan, plan_memory
from vllm.worker.runner import ModelRunner
from vllm.worker.tables import SlotTables

logger = get_logger(__name__)


def load(config: EngineConfig, progress: bool) -> tuple[ModelRunner, MemoryPlan]:
    """Make the model runner of a configuration.  Raises ConfigError or ModelError before weights are read if it can."""
    began = time.monotonic()
    set_threads(config.cores)
    settings, scheduler = config.model, config.scheduler
    dtype, device = getattr(torch, settings.dtype), torch.device(config.device)
    files = [] if settings.load_format == "dummy" else weight_files(Path(settings.path), settings.load_format)
    check_files(files)
    model = build(settings.hf_config, Placement(dtype, device, settings.quantization), settings.max_model_len).eval()
    groups = group_layers(model.cache_specs)
    memory = _CacheMemory(
        attention_backend(model.cache_specs, dtype, device, config.cache.block_size, config.cache.quantized),
        config.cache,
        dtype,
    )
    plan = plan_memory(
        groups,
        config.cache,
        scheduler,
        [memory.block_bytes(group) for group in groups],
        model.num_bytes,
        _activations(config, model),
        free_memory(),
    )
    name = settings.model or "default model"
    logger.info("%s: %s, %s, %d threads; %s", name, settings.architecture, settings.dtype, config.cores, plan)
    _fill(config, model, files, progress)
    runner = ModelRunner(
        model,
        groups,
        memory.allocate(groups, plan.num_blocks),
        memory.backend,
        SlotTables(
            scheduler.max_num_seqs,
            scheduler.max_model_len,
            len(groups),
            config.cache.block_size,
            scheduler.max_num_batched_tokens,
        ),
        Sampler(
            scheduler.max_num_seqs,
            settings.vocab_size,
            device,
            max_logprobs=settings.max_logprobs,
            logprobs_mode=settings.logprobs_mode,
        ),
    )
    logger.info("ready after %.2f s", time.monotonic() - began)
    return runner, plan


def _fill(config: EngineConfig, model: Transformer, files: list[Path], progress: bool) -> None:
    if not files:
        fill_dummy(model.windows(), seed=config.model.seed)
        return
    found = tensors(files, progress=progress)
    fill(model.windows(), found, model.ignored_names, where=config.model.path, prefixes=(model.base_prefix,))


@dataclass(frozen=True, slots=True)
class _CacheMemory:
    """The layers' caches before they are made."""

    backend: AttentionBackend
    config: CacheConfig
    dtype: torch.dtype

    def block_bytes(self, group: CacheGroup) -> int:
        """Return the bytes of a block over all layers of a group."""
        cache = self.config
        each = self.backend.block_bytes(group.spec, cache.block_size, self.dtype, cache.quantized)
        return each * len(group.layers)

    def allocate(self, groups: tuple[CacheGroup, ...], num_blocks: tuple[int, ...]) -> tuple[Any, ...]:
        """Make one cache per attention layer, in call order."""
        caches = {
            layer: self.backend.allocate(group.spec, count, self.config.block_size, self.dtype, self.config.quantized)
            for group, count in zip(groups, num_blocks, strict=True)
            for layer in group.layers
        }
        return tuple(caches[layer] for layer in range(len(caches)))


def _activations(config: EngineConfig, model: Transformer) -> int:
    """Bytes of the largest step: a few float32 copies of its widest layer, and of its logits."""
    widest = max(matrix.shape.rows for matrix in model.blocks.modules() if isinstance(matrix, Matrix))
    rows = min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    return 4 * (6 * widest * config.scheduler.max_num_batched_tokens + 2 * config.model.vocab_size * rows)
