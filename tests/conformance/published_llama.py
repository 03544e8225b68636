"""What models in llama's image that are written down here have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tests.conformance.tiny import VOCAB

Config = Mapping[str, Any]
Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
Model = tuple[Config, Shapes, Callable[[Config, Weights, Tensor], Tensor]]

WIDTH, HEADS, KV_HEADS, HEAD_DIM, INNER = 64, 4, 2, 16, 48
LLAMA: Config = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 128,
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def rms(weights: Weights, name: str, x: Tensor, offset: float = 0.0, groups: int = 1) -> Tensor:
    parts = x.unflatten(-1, (groups, -1))
    parts = parts * (parts.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return parts.flatten(-2) * (weights[f"{name}.weight"] + offset)


def heads_of(weights: Weights, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (linear(weights, f"{name}.{part}_proj", x).unflatten(1, (-1, HEAD_DIM)) for part in "qkv")
    return q, k, v


def gated(weights: Weights, name: str, x: Tensor, limit: float | None = None) -> Tensor:
    gate, up = F.silu(linear(weights, f"{name}.gate_proj", x)), linear(weights, f"{name}.up_proj", x)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return linear(weights, f"{name}.down_proj", gate * up)


def ends() -> Shapes:
    names = ("model.embed_tokens", "lm_head")
    return {f"{name}.weight": (VOCAB, WIDTH) for name in names} | {"model.norm.weight": (WIDTH,)}


def attention_shapes(name: str, heads: int = HEADS) -> Shapes:
    inner, shared = heads * HEAD_DIM, KV_HEADS * HEAD_DIM
    sizes = {"q": (inner, WIDTH), "k": (shared, WIDTH), "v": (shared, WIDTH), "o": (WIDTH, inner)}
    return {f"{name}.{part}_proj.weight": shape for part, shape in sizes.items()}


def gated_shapes(name: str, inner: int = INNER) -> Shapes:
    shapes: Shapes = {f"{name}.{part}_proj.weight": (inner, WIDTH) for part in ("gate", "up")}
    return shapes | {f"{name}.down_proj.weight": (WIDTH, inner)}


def norm_shapes(name: str, *norms: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.{norm}.weight": (width,) for norm in norms}
