"""Attention of prompts by FlashInfer's kernels, where that package is installed; of everything else by ours.

Both read the same cache.  On an H200, 32 heads of 128 elements, bfloat16: a prompt of 8192 tokens takes 1.04 ms instead of 1.70,
2048 tokens after 6144 others 0.48 instead of 0.77, 16 prompts of 512 tokens 0.18 instead of 0.28.  Single tokens are not faster.  To
plan a step takes FlashInfer up to two milliseconds of the host, so few tokens do not pay.

Its kernels are compiled when they are first used on a machine, which takes a minute and happens while the engine starts.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm.logging import get_logger
from vllm.ops.attention import AttentionOptions, Layout
from vllm.ops.attention_torch import PagedCache
from vllm.ops.staging import mark, sent
from vllm.ops.triton.attention import Qkv, TritonAttention, TritonPlan

logger = get_logger(__name__)
_LEAST_TOKENS = 1024
_WIDTHS = (64, 128, 256)
_WORKSPACE_BYTES = 256 << 20
_CAPABILITY = (9, 0)
"""Hopper's kernels were measured; those for older GPUs are not faster than ours there."""


def installed(device: torch.device) -> bool:
    """Return whether FlashInfer is there and is of use on a device."""
    return (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device) == _CAPABILITY
        and importlib.util.find_spec("flashinfer") is not None
    )


class _Turns:
    """Two of FlashInfer's wrappers, in turns: what one was planned with must stay until the device has it."""

    def __init__(self, workspace: Tensor) -> None:
        make = importlib.import_module("flashinfer").BatchPrefillWithPagedKVCacheWrapper
        self._device = workspace.device
        self._wrappers = deque(make(workspace, "HND") for _ in range(2))
        self._waits: deque[Callable[[], None]] = deque([lambda: None] * 2)

    def planned(self, *args: Any, **options: Any) -> Any:
        """Return the wrapper whose turn it is, planned."""
        self._waits.popleft()()
        self._wrappers.rotate()
        self._wrappers[0].plan(*args, **options)
        self._waits.append(mark(self._device))
        return self._wrappers[0]


class FlashInferPlan(TritonPlan):
    """A plan of ours, with which FlashInfer's kernels are planned when a layer of a step first asks for them."""

    def __init__(
        self, device: torch.device, max_rows: int, max_tokens: int, max_blocks: int, workspace: Tensor
    ) -> None:
        super().__init__(device, max_rows, max_tokens, max_blocks)
        self._workspace = workspace
        self._turns: dict[Any, _Turns] = {}
        self._ready: dict[Any, Any] = {}
        self.long_tokens: Tensor | None = None
        self.num_long = 0

    def place(self, layout: Layout) -> None:
        """Bring a step's layout to the device."""
        super().place(layout)
        self._ready.clear()
        count = layout.count.numpy()
        self._long = np.flatnonzero(count > 1)
        self.num_long = int(count[self._long].sum())
        self.long_tokens = None
        if self.num_long >= _LEAST_TOKENS and len(self._long) < len(count):
            tokens = np.flatnonzero(np.repeat(count > 1, count))
            self.long_tokens = sent(tokens, self.device)

    def wrapper(self, q: Tensor, cache: PagedCache, options: AttentionOptions) -> Any:
        """Return FlashInfer's wrapper, planned for the longer rows of the step and such a layer."""
        key = (options.scale, options.window, options.softcap, q.shape[1:], cache.keys.shape[1:], q.dtype)
        if key not in self._turns:
            self._turns[key] = _Turns(self._workspace)
        if key not in self._ready:
            self._ready[key] = self._planned(self._turns[key], q, cache, options)
        return self._ready[key]

    def _planned(self, turns: _Turns, q: Tensor, cache: PagedCache, options: AttentionOptions) -> Any:
        start, count = (part.numpy()[self._long] for part in (self._layout.start, self._layout.count))
        ends, size = start + count, self.block_size
        blocks = -(-ends // size)
        table = self._layout.block_table.numpy()[self._long]
        indices = table[np.arange(table.shape[1]) < blocks[:, None]]
        return turns.planned(
            _borders(count), _borders(blocks), sent(indices, self.device),
            torch.from_numpy(((ends - 1) % size + 1).astype(np.int32)),
            q.shape[1], cache.keys.shape[1], cache.keys.shape[3], size,
            causal=True, sm_scale=options.scale, window_left=(options.window or 0) - 1,
            logits_soft_cap=options.softcap or None, q_data_type=q.dtype, kv_data_type=cache.keys.dtype,
        )  # fmt: skip


class FlashInferAttention(TritonAttention):
    """The attention backend for GPUs on which FlashInfer is installed."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._workspace: Tensor | None = None
        self._works = True

    def plan(self, rows: int, tokens: int, blocks: int) -> FlashInferPlan:
        """Return a plan that has yet to be placed."""
        if self._workspace is None:
            self._workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=self.device)
        return FlashInferPlan(self.device, rows, tokens, blocks, self._workspace)

    def _run_tiles(self, qkv: Qkv, cache: PagedCache, plan: TritonPlan, options: AttentionOptions, out: Tensor) -> None:
        assert isinstance(plan, FlashInferPlan), "plans are this backend's own"
        takes = plan.form is None and plan.media is None and plan.num_long >= _LEAST_TOKENS
        if self._works and takes and _takes(qkv[0], cache, options):
            try:
                wrapper = plan.wrapper(qkv[0], cache, options)
                _run(wrapper, qkv[0], cache, plan.long_tokens, out)
                return
            except Exception as error:  # no compiler, another version: whatever it is, ours can do it
                self._works = False
                logger.warning("FlashInfer can't be used, the own kernels are: %s", error)
        super()._run_tiles(qkv, cache, plan, options, out)


def _takes(q: Tensor, cache: PagedCache, options: AttentionOptions) -> bool:
    """Return whether FlashInfer has a kernel for such a layer."""
    width, value_width = cache.keys.shape[3], cache.values.shape[3]
    plain = options.sinks is None and options.alibi_slopes is None and options.bias is None and options.causal
    return plain and width == value_width and width in _WIDTHS and q.dtype in (torch.bfloat16, torch.float16)


def _run(wrapper: Any, q: Tensor, cache: PagedCache, tokens: Tensor | None, out: Tensor) -> None:
    """Attend for the tokens of the longer rows, or for all where there are no others.  [T, H, E] -> [T, H, E]"""
    if tokens is None:
        wrapper.run(q.contiguous(), (cache.keys, cache.values), out=out)
    else:
        out.index_copy_(0, tokens, wrapper.run(q[tokens], (cache.keys, cache.values)))


def _borders(counts: np.ndarray) -> Tensor:
    """Return where each row's share begins, and where the last one ends.  [R] -> [R + 1] int32"""
    borders = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=borders[1:])
    return torch.from_numpy(borders)
