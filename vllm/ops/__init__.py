"""One function per operation.  Layers import from here and never ask which device they run on.

Every operation here is batch invariant: what it computes for a token is the same to the last bit whatever else is in
the step.  The plain-torch versions (`linear`, `norms`, `activations`, `rotary`, `moe`, `attention_torch`, `recurrent`) are
the truth of the tests and the fallback on any device.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from vllm.errors import ConfigError
from vllm.kv_cache.spec import PagedSpec
from vllm.logging import get_logger
from vllm.ops import native, norms, recurrent, rows
from vllm.ops import rotary as rotary_torch
from vllm.ops.activations import ACTIVATIONS
from vllm.ops.attention import AttentionBackend, Form
from vllm.ops.attention_torch import TorchAttention
from vllm.ops.matrix import DenseMatrix, Matrix, MatrixShape
from vllm.ops.moe import chosen_products as chosen_torch
from vllm.ops.moe import moe as moe_torch
from vllm.ops.moe import route
from vllm.ops.native import matrix as native_matrix
from vllm.ops.native import program as native_program
from vllm.ops.native import recurrent as native_recurrent
from vllm.ops.native import rows as native_rows
from vllm.ops.native.attention import NativeAttention
from vllm.ops.recurrent import Fading
from vllm.ops.states import StateMemory

__all__ = [
    "ACTIVATIONS",
    "Fading",
    "Recording",
    "add",
    "all_finite",
    "attention_backend",
    "causal_conv",
    "choose",
    "chosen_products",
    "experts",
    "gate",
    "gated_delta",
    "gather",
    "greatest",
    "layer_norm",
    "matrix",
    "moe",
    "multiply",
    "record",
    "record_steps",
    "rg_lru",
    "rising_keys",
    "rms_norm",
    "rotary",
    "route",
    "selective_scan",
    "side_by_side",
    "softcap",
    "state_memory",
]


logger = get_logger(__name__)


class Recording(Protocol):
    """A computation that can be run with one call."""

    most: int
    """How many rows it can compute."""
    output: Tensor | None
    """Where its results are, if that is always the same place.  [most, …]"""

    def run(self, rows: int) -> Tensor:
        """Compute; the result is overwritten by the next run.  -> [rows, …]"""


Operation = TypeVar("Operation", bound=Callable[..., Any])


@functools.cache
def _gpu(module: str) -> Any:
    """Return a module of kernels for GPUs; they need Triton, which comes with torch where that is for GPUs."""
    return importlib.import_module(f"vllm.ops.triton.{module}")


def _either(reference: Operation, kernel: Operation, gpu: str = "") -> Operation:
    """Return the operation that runs the kernel where its first argument is one for kernels.

    `gpu` is the module of the kernel of the same name for GPUs; without one torch is good enough there.
    """

    @functools.wraps(reference)
    def operation(x: Any, *args: Any, **options: Any) -> Any:
        if gpu and x.is_cuda:
            return getattr(_gpu(gpu), reference.__name__)(x, *args, **options)
        return (kernel if native.takes(x) else reference)(x, *args, **options)

    return operation  # type: ignore[return-value]


add = _either(rows.add, native_rows.add)
multiply = _either(rows.multiply, native_rows.multiply)
all_finite = _either(rows.all_finite, native_rows.all_finite)
gather = _either(rows.gather, native_rows.gather)
layer_norm = _either(norms.layer_norm, native_rows.layer_norm, "norms")
rms_norm = _either(norms.rms_norm, native_rows.rms_norm, "norms")
rotary = _either(rotary_torch.rotary, native_rows.rotary, "rotary")
moe = _either(moe_torch, moe_torch, "moe")
chosen_products = _either(chosen_torch, chosen_torch, "moe")
side_by_side = _either(rows.side_by_side, native_rows.side_by_side)
softcap = _either(rows.softcap, native_rows.softcap)
causal_conv = _either(recurrent.causal_conv, native_recurrent.causal_conv, "recurrent")
selective_scan = _either(recurrent.selective_scan, native_recurrent.selective_scan, "recurrent")
gated_delta = _either(recurrent.gated_delta, native_recurrent.gated_delta, "delta")
rg_lru = _either(recurrent.rg_lru, native_recurrent.rg_lru, "recurrent")
gate = _either(recurrent.gate, native_recurrent.gate, "recurrent")


def choose(logits: Tensor, controls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose each row's token on a GPU; see `ops.triton.sampling`.  [R, V] float32, [5, R] float32"""
    found: tuple[Tensor, Tensor, Tensor] = _gpu("sampling").choose(logits, controls)
    return found


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Find each row's greatest logit, NaN if it holds one, and where it is, of equal ones the first.  [R, V] -> [R], [R] int32"""
    if not logits.is_cuda:
        places = torch.from_numpy(logits.numpy().argmax(axis=1))
        return logits.gather(1, places[:, None])[:, 0], places.to(torch.int32)
    found: tuple[Tensor, Tensor] = _gpu("sampling").greatest(logits)
    return found


def rising_keys(logits: Tensor) -> Tensor:
    """Return int32 that rise with float32 logits.  Same shape"""
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def attention_backend(
    specs: Sequence[PagedSpec],
    dtype: torch.dtype,
    device: torch.device,
    block_size: int,
    quantized: bool = False,
    media: bool = False,
) -> AttentionBackend:
    """Return the best attention backend that can serve such layers of a model of `dtype`.

    `quantized`: the cache holds 8-bit integers.  `media`: rows are cut where media stand, into more than a GPU's plans have
    room for.  Raises ConfigError if none can.
    """
    backends: list[AttentionBackend] = [TorchAttention(device)]
    if device.type == "cpu" and native.library() is not None:
        backends.insert(0, NativeAttention())
    if device.type == "cuda" and not media:
        backends.insert(0, _gpu_attention(device))
    reasons = []
    for backend in backends:
        found = [reason for spec in specs if (reason := backend.refuses(spec, dtype, block_size, quantized))]
        if not found:
            return backend
        reasons.append(found[0])
    raise ConfigError("; ".join(reasons))


def _gpu_attention(device: torch.device) -> AttentionBackend:
    kind: Callable[[torch.device], AttentionBackend] = _gpu("attention").TritonAttention
    if _gpu("flashinfer").installed(device):
        kind = _gpu("flashinfer").FlashInferAttention
    return kind(device)


def state_memory(device: torch.device) -> StateMemory:
    """Return what makes the caches of recurrent layers, and plans for the device's kernels."""
    memory: StateMemory = _gpu("states").TritonStateMemory(device) if device.type == "cuda" else StateMemory(device)
    return memory


def matrix(shape: MatrixShape) -> Matrix:
    """Return the best kind of matrix for a shape.  Raises ConfigError if it can't be quantized as it asks."""
    if shape.device.type == "cuda":
        reason = None if shape.format is None else _gpu("quantized").refuses(shape)
        kind: Callable[[MatrixShape], Matrix] = _gpu("matrix").GpuMatrix
        if shape.format is not None:
            kind = _gpu("quantized").QuantizedMatrix
    else:
        reason = native_matrix.refuses(shape)
        if reason is None and native.library() is None:
            reason = "it needs the native kernels, which are not there"
        kind = DenseMatrix if reason else native_matrix.NativeMatrix
    if reason is not None and shape.format is not None:
        raise ConfigError(f"quantization={shape.format!r} can't be used: {reason}")
    return kind(shape)


def experts(count: int, shape: MatrixShape) -> nn.ModuleList:
    """Return the matrices of a layer's experts, for `moe`.  Raises ConfigError if they can't be quantized as `shape` asks."""
    if shape.device.type == "cuda":
        reason = None if shape.format is None else _gpu("quantized").refuses(shape)
        if reason is not None:
            raise ConfigError(f"quantization={shape.format!r} can't be used: {reason}")
        kind = _gpu("moe").ExpertMatrices if shape.format is None else _gpu("quantized_moe").QuantizedExperts
        matrices: nn.ModuleList = kind(count, shape)
        return matrices
    return nn.ModuleList(matrix(shape) for _ in range(count))


def record_steps(function: Callable[[int], Tensor], tokens: int, device: torch.device) -> dict[Form, Recording]:
    """Record the computation of a step of some number of tokens, for each form of steps that needs a recording of its own."""
    if device.type == "cuda":
        pool = torch.cuda.graph_pool_handle()
        return {form: _gpu("graphs").Graphs(function, tokens, device, pool) for form in (Form.SINGLES, Form.MIXED)}
    recording = record(function, tokens)
    return {} if recording is None else {Form.ANY: recording}


def record(function: Callable[[int], Tensor], rows: int) -> Recording | None:
    """Record a computation of a number of rows on a processor, to be run with one call; None if something in it is no kernel.

    What the function reads must keep its place, and have `rows` rows: so many can be computed.
    """
    if native.library() is None:
        return None
    try:
        return native_program.record(lambda: function(rows))
    except native_program.NotRecordable as reason:
        logger.info("steps are not recorded: %s", reason)
        return None
