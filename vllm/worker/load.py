"""From an EngineConfig to a ModelRunner that is ready: plan the memory, build the model, fill its windows."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from vllm.config import EngineConfig
from vllm.device import free_memory
from vllm.errors import ConfigError
from vllm.kv_cache.spec import group_layers
from vllm.layers.decoder import Decoder
from vllm.loader.dummy import fill_dummy
from vllm.loader.fill import fill
from vllm.loader.read import check_files, tensors, weight_files
from vllm.logging import get_logger
from vllm.models.registry import build
from vllm.ops import attention_backend
from vllm.sampling.sampler import Sampler
from vllm.worker.memory import MemoryPlan, plan_memory
from vllm.worker.runner import ModelRunner
from vllm.worker.tables import SlotTables

logger = get_logger(__name__)


def load(config: EngineConfig, progress: bool) -> tuple[ModelRunner, MemoryPlan]:
    """Make the model runner of a configuration.  Raises ConfigError or ModelError before weights are read if it can."""
    began = time.monotonic()
    torch.set_num_threads(config.cores)
    dtype, device = getattr(torch, config.model.dtype), torch.device(config.device)
    model = build(config.model.hf_config, dtype, device, config.model.max_model_len).eval()
    groups = group_layers(model.cache_specs)
    backend = attention_backend(device)
    for group in groups:
        if reason := backend.refuses(group.spec, dtype):
            raise ConfigError(f"{config.model.model}: {reason}")
    files = (
        [] if config.model.load_format == "dummy" else weight_files(Path(config.model.path), config.model.load_format)
    )
    check_files(files)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    plan = plan_memory(
        groups, config.cache, config.scheduler, dtype.itemsize, weights, _activations(config, model), free_memory()
    )
    logger.info(
        "%s: %s, %s, %d threads; %s",
        config.model.model or "default model",
        config.model.architecture,
        config.model.dtype,
        config.cores,
        plan,
    )
    if files:
        fill(
            model.windows(),
            tensors(files, progress=progress),
            model.ignored_names,
            where=config.model.path,
            prefixes=(model.base_prefix,),
        )
    else:
        fill_dummy(model.windows(), seed=config.model.seed)
    scheduler = config.scheduler
    tables = SlotTables(scheduler.max_num_seqs, scheduler.max_model_len, len(groups), config.cache.block_size)
    sampler = Sampler(
        scheduler.max_num_seqs,
        config.model.vocab_size,
        device,
        max_logprobs=config.model.max_logprobs,
        logprobs_mode=config.model.logprobs_mode,
    )
    caches = {
        layer: backend.allocate(group.spec, count, config.cache.block_size, dtype)
        for group, count in zip(groups, plan.num_blocks, strict=True)
        for layer in group.layers
    }
    runner = ModelRunner(model, groups, tuple(caches[i] for i in range(len(caches))), backend, tables, sampler)
    logger.info("ready after %.2f s", time.monotonic() - began)
    return runner, plan


def _activations(config: EngineConfig, model: Decoder) -> int:
    """Bytes of the largest step: a few float32 copies of its widest layer, and of its logits."""
    widest = max(
        parameter.shape[-2] if parameter.ndim > 1 else len(parameter)
        for name, parameter in model.named_parameters()
        if "blocks" in name
    )
    rows = min(config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens)
    return 4 * (6 * widest * config.scheduler.max_num_batched_tokens + 2 * config.model.vocab_size * rows)
