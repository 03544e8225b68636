"""From an EngineConfig to a ModelRunner that is ready: plan the memory, build the model, fill its windows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from vllm.config import EngineConfig
from vllm.device import free_memory
from vllm.errors import ConfigError
from vllm.kv_cache.spec import CacheGroup, group_layers
from vllm.layers.decoder import Decoder
from vllm.layers.placement import Placement
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
    plan = _plan(config, model, groups, dtype.itemsize)
    name = settings.model or "default model"
    logger.info("%s: %s, %s, %d threads; %s", name, settings.architecture, settings.dtype, config.cores, plan)
    _fill(config, model, files, progress)
    runner = ModelRunner(
        model,
        groups,
        *_caches(config, groups, plan, dtype, device),
        SlotTables(scheduler.max_num_seqs, scheduler.max_model_len, len(groups), config.cache.block_size),
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


def _plan(config: EngineConfig, model: Decoder, groups: tuple[CacheGroup, ...], element_bytes: int) -> MemoryPlan:
    activations = _activations(config, model)
    return plan_memory(
        groups, config.cache, config.scheduler, element_bytes, model.num_bytes, activations, free_memory()
    )


def _fill(config: EngineConfig, model: Decoder, files: list[Path], progress: bool) -> None:
    if not files:
        fill_dummy(model.windows(), seed=config.model.seed)
        return
    found = tensors(files, progress=progress)
    fill(model.windows(), found, model.ignored_names, where=config.model.path, prefixes=(model.base_prefix,))


def _caches(
    config: EngineConfig, groups: tuple[CacheGroup, ...], plan: MemoryPlan, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Any, ...], AttentionBackend]:
    """Make one cache per attention layer, in call order.  Raises ConfigError if the backend can't serve a layer."""
    backend = attention_backend(device)
    caches = {}
    for group, count in zip(groups, plan.num_blocks, strict=True):
        if reason := backend.refuses(group.spec, dtype, config.cache.block_size):
            raise ConfigError(f"{config.model.model}: {reason}")
        for layer in group.layers:
            caches[layer] = backend.allocate(group.spec, count, config.cache.block_size, dtype)
    return tuple(caches[layer] for layer in range(len(caches))), backend


def _activations(config: EngineConfig, model: Decoder) -> int:
    """Bytes of the largest step: a few float32 copies of its widest layer, and of its logits."""
    widest = max(matrix.shape.rows for matrix in model.blocks.modules() if isinstance(matrix, Matrix))
    rows = min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    return 4 * (6 * widest * config.scheduler.max_num_batched_tokens + 2 * config.model.vocab_size * rows)
