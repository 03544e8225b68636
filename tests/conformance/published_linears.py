"""Models with experts that no model of transformers computes: their mathematics, as published, without a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.published_parts import attend, rotate
from tests.conformance.tiny import VOCAB

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, EXPERTS, CHOSEN = 64, 48, 4, 4, 2, 16, 4, 2
Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_experts_per_tok": CHOSEN, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
}  # fmt: skip
_ATTENTION: Shapes = {
    "q_proj.weight": (HEADS * HEAD_DIM, WIDTH), "k_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH),
    "v_proj.weight": (KV_HEADS * HEAD_DIM, WIDTH), "o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
}  # fmt: skip


def _experts_shapes(name: str, parts: tuple[str, str, str]) -> Shapes:
    gate, up, down = parts
    sizes: Shapes = {gate: (INNER, WIDTH), up: (INNER, WIDTH), down: (WIDTH, INNER)}
    each = {f"{name}.experts.{x}.{part}.weight": size for x in range(EXPERTS) for part, size in sizes.items()}
    return each | {f"{name}.gate.weight": (EXPERTS, WIDTH)}


def _rms(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _experts(
    weights: Weights,
    name: str,
    parts: tuple[str, str, str],
    x: Tensor,
    activation: Callable[[Tensor], Tensor],
    renormalize: bool,
) -> Tensor:
    """Weigh the chosen experts by their softmax over all, or over those chosen."""
    shares, chosen = F.linear(x, weights[f"{name}.gate.weight"]).softmax(-1).topk(CHOSEN)
    if renormalize:
        shares = shares / shares.sum(-1, keepdim=True)
    rows = []
    for row, own, ids in zip(x, shares, chosen, strict=True):
        each = []
        for share, expert in zip(own, ids.tolist(), strict=True):
            gate, up, down = (weights[f"{name}.experts.{expert}.{part}.weight"] for part in parts)
            each.append(share * (down @ (activation(gate @ row) * (up @ row))))
        rows.append(torch.stack(each).sum(0))
    return torch.stack(rows)


# ── minimax text 01: lightning attention, softmax attention on some layers ──────────────────────────────────────────

MINIMAX: Mapping[str, Any] = {
    **_SIZES, "head_dim": HEAD_DIM, "attn_type_list": [0, 1, 0, 1], "num_local_experts": EXPERTS, "postnorm": True,
    "rope_theta": 1e7, "rotary_dim": 8, "layernorm_full_attention_alpha": 1.5, "layernorm_full_attention_beta": 0.8,
    "layernorm_linear_attention_alpha": 1.2, "layernorm_linear_attention_beta": 0.9, "layernorm_mlp_alpha": 1.1,
    "layernorm_mlp_beta": 0.7, "shared_intermediate_size": 0, "hidden_act": "silu", "sliding_window": None,
    "tie_word_embeddings": False,
}  # fmt: skip
_MINIMAX_PARTS = ("w1", "w3", "w2")


def minimax_shapes() -> Shapes:
    """Return the shapes of its tensors."""
    inner = HEADS * HEAD_DIM
    lightning: Shapes = {
        "qkv_proj.weight": (3 * inner, WIDTH), "output_gate.weight": (inner, WIDTH), "norm.weight": (inner,),
        "out_proj.weight": (WIDTH, inner),
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH)}
    shapes["model.norm.weight"] = (WIDTH,)
    for layer, is_full in enumerate(MINIMAX["attn_type_list"]):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{part}": size for part, size in (_ATTENTION if is_full else lightning).items()}
        shapes |= {f"{name}.{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
        shapes |= _experts_shapes(f"{name}.block_sparse_moe", _MINIMAX_PARTS)
    return shapes


def minimax(config: Mapping[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """Return the logits behind each token.  [n] -> [n, V]"""
    x = weights["model.embed_tokens.weight"][ids]
    for layer, is_full in enumerate(config["attn_type_list"]):
        name = f"model.layers.{layer}"
        x = _rms(x, weights[f"{name}.input_layernorm.weight"])
        kind = "full" if is_full else "linear"
        mixed = _half_turned(config, weights, name, x) if is_full else _lightning(weights, layer, x)
        alpha, beta = (config[f"layernorm_{kind}_attention_{end}"] for end in ("alpha", "beta"))
        x = _rms(alpha * x + beta * mixed, weights[f"{name}.post_attention_layernorm.weight"])
        found = _experts(weights, f"{name}.block_sparse_moe", _MINIMAX_PARTS, x, F.silu, True)
        x = config["layernorm_mlp_alpha"] * x + config["layernorm_mlp_beta"] * found
    return F.linear(_rms(x, weights["model.norm.weight"]), weights["lm_head.weight"])


def _half_turned(config: Mapping[str, Any], weights: Weights, name: str, x: Tensor) -> Tensor:
    """Attention whose heads are rotated in their first elements alone."""
    q, k, v = (
        F.linear(x, weights[f"{name}.self_attn.{part}_proj.weight"]).unflatten(1, (-1, HEAD_DIM)) for part in "qkv"
    )
    turned = config["rotary_dim"]
    q, k = (torch.cat((rotate(y[..., :turned], config["rope_theta"]), y[..., turned:]), -1) for y in (q, k))
    return F.linear(attend(q, k, v, HEAD_DIM**-0.5), weights[f"{name}.self_attn.o_proj.weight"])


def _lightning(weights: Weights, layer: int, x: Tensor) -> Tensor:
    """Every query sums the values before it, weighed by their keys and by how far they are: no softmax."""
    name = f"model.layers.{layer}.self_attn"
    q, k, v = F.silu(F.linear(x, weights[f"{name}.qkv_proj.weight"])).unflatten(1, (HEADS, -1)).split(HEAD_DIM, dim=-1)
    slopes = 2.0 ** (-8 * torch.arange(1, HEADS + 1) / HEADS) * (1 - layer / (LAYERS - 1) + 1e-5)
    behind = torch.arange(len(x))[:, None] - torch.arange(len(x))
    faded = (-slopes[:, None, None] * behind).exp().masked_fill(behind < 0, 0.0)
    found = torch.einsum("hqk,khe->qhe", torch.einsum("qhe,khe->hqk", q, k) * faded, v).flatten(1)
    found = _rms(found, weights[f"{name}.norm.weight"], 1e-6)
    gate = torch.sigmoid(F.linear(x, weights[f"{name}.output_gate.weight"]))
    return F.linear(gate * found, weights[f"{name}.out_proj.weight"])


# ── grok 1: sandwiches, scores within bounds, weights of experts that don't sum to 1 ─────────────────────────────────

GROK: Mapping[str, Any] = {
    **_SIZES, "num_experts": EXPERTS, "attn_output_multiplier": 0.3, "embedding_multiplier_scale": 3.0,
    "output_multiplier_scale": 0.5, "max_attn_value": 1.5, "tie_word_embeddings": True,
}  # fmt: skip
_GROK_NORMS = ("pre_attn_norm", "post_attn_norm", "pre_moe_norm", "post_moe_norm")
_GROK_PARTS = ("linear", "linear_v", "linear_1")


def grok_shapes() -> Shapes:
    """Return the shapes of its tensors."""
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.scale": (WIDTH,)}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.attn.{part}": size for part, size in _ATTENTION.items()}
        shapes |= {f"{name}.{norm}.scale": (WIDTH,) for norm in _GROK_NORMS}
        shapes |= _experts_shapes(f"{name}.moe_block", _GROK_PARTS)
    return shapes


def grok(config: Mapping[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """Return the logits behind each token.  [n] -> [n, V]"""
    table = weights["model.embed_tokens.weight"]
    x = table[ids] * config["embedding_multiplier_scale"]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        before, after, before_experts, after_experts = (weights[f"{name}.{norm}.scale"] for norm in _GROK_NORMS)
        x = x + _rms(_bounded(config, weights, f"{name}.attn", _rms(x, before)), after)
        y = _experts(weights, f"{name}.moe_block", _GROK_PARTS, _rms(x, before_experts), _gelu, False)
        x = x + _rms(y, after_experts)
    return F.linear(_rms(x, weights["model.norm.scale"]), table) * config["output_multiplier_scale"]


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _bounded(config: Mapping[str, Any], weights: Weights, name: str, x: Tensor) -> Tensor:
    q, k, v = (F.linear(x, weights[f"{name}.{part}_proj.weight"]).unflatten(1, (-1, HEAD_DIM)) for part in "qkv")
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1) for part in (rotate(k), v))
    scores = torch.einsum("qhe,khe->hqk", rotate(q), k) * config["attn_output_multiplier"]
    scores = config["max_attn_value"] * (scores / config["max_attn_value"]).tanh()
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    found = torch.einsum("hqk,khe->qhe", scores.masked_fill(future, -math.inf).softmax(-1), v)
    return F.linear(found.flatten(1), weights[f"{name}.o_proj.weight"])
