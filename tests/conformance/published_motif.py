"""Motif, whose heads are pairs and whose gates are polynomials: its mathematics, as published, without a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from tests.conformance.published_llama import (
    HEAD_DIM,
    HEADS,
    LLAMA,
    Config,
    Model,
    Shapes,
    Weights,
    attention_shapes,
    ends,
    gated_shapes,
    heads_of,
    linear,
    norm_shapes,
    rms,
)
from tests.conformance.published_parts import attend, rotate

LAYERS = 3
MOTIF: Config = {
    **LLAMA, "model_type": "motif", "num_hidden_layers": LAYERS, "hidden_act": "poly_norm", "attn_rms_norm_eps": 1e-5,
    "use_bias": False, "use_sliding_window": False,
}  # fmt: skip


def _shapes() -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        norms = norm_shapes(name, "input_layernorm", "post_attention_layernorm")
        shapes |= attention_shapes(f"{name}.self_attn") | gated_shapes(f"{name}.mlp") | norms
        shapes |= {f"{name}.self_attn.lambda_{part}": (HEAD_DIM,) for part in ("q1", "k1", "q2", "k2")}
        shapes |= norm_shapes(f"{name}.self_attn", "subln", width=2 * HEAD_DIM)
        shapes |= {f"{name}.mlp.act_fn.weight": (3,), f"{name}.mlp.act_fn.bias": (1,)}
    return shapes


def _pairs(weights: Weights, layer: int, x: Tensor) -> Tensor:
    name = f"model.layers.{layer}.self_attn"
    q, k, v = heads_of(weights, name, x)
    q, k, v = rotate(q), rotate(k), v.unflatten(1, (-1, 2)).flatten(2)  # [n, H, E], [n, G, E], [n, G / 2, 2 E]
    first, second = (attend(q[:, which::2], k[:, which::2], v, HEAD_DIM**-0.5) for which in (0, 1))
    a, b, c, d = (weights[f"{name}.lambda_{part}"] for part in ("q1", "k1", "q2", "k2"))
    start = 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))
    share = (a @ b).exp() - (c @ d).exp() + start
    rest = rms(weights, f"{name}.subln", (first - share * second).unflatten(1, (HEADS // 2, -1))) * (1 - start)
    return linear(weights, f"{name}.o_proj", rest.flatten(1))


def _polynomial(weights: Weights, name: str, x: Tensor) -> Tensor:
    def unit(y: Tensor) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    a, b, c = weights[f"{name}.weight"]
    return a * unit(x**3) + b * unit(x**2) + c * unit(x) + weights[f"{name}.bias"]


def motif(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        x = x + _pairs(weights, layer, rms(weights, f"{name}.input_layernorm", x))
        y = rms(weights, f"{name}.post_attention_layernorm", x)
        gate = _polynomial(weights, f"{name}.mlp.act_fn", linear(weights, f"{name}.mlp.gate_proj", y))
        x = x + linear(weights, f"{name}.mlp.down_proj", gate * linear(weights, f"{name}.mlp.up_proj", y))
    return linear(weights, "lm_head", rms(weights, "model.norm", x))


MOTIFS: Mapping[str, Model] = {"MotifForCausalLM": (MOTIF, _shapes(), motif)}
