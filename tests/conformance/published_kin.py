"""Models that are llama but for a few parts: their mathematics, as published, without a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.published_llama import (
    HEAD_DIM,
    HEADS,
    INNER,
    KV_HEADS,
    LLAMA,
    WIDTH,
    Config,
    Model,
    Shapes,
    Weights,
    attention_shapes,
    ends,
    gated,
    gated_shapes,
    heads_of,
    linear,
    norm_shapes,
    rms,
)
from tests.conformance.published_parts import attend, rotate

LAYERS, EXPERTS, EXPERT_WIDTH = 4, 6, 24
SCALE = HEAD_DIM**-0.5
NORMS = ("input_layernorm", "post_attention_layernorm")


def distances(length: int) -> Tensor:
    places = torch.arange(length)
    return places[:, None] - places


def windowed(length: int, window: int | None) -> Tensor:
    hidden = distances(length) >= (length if window is None else window)
    return torch.zeros(length, length).masked_fill(hidden, -math.inf)


def chosen_experts(
    weights: Weights, name: str, x: Tensor, scores: Tensor, shares: Tensor, limit: float | None = None
) -> Tensor:
    """Add up what the two experts of the greatest scores make of each token, by their shares, which add up to 1."""
    _, chosen = scores.topk(2)
    shares = shares.gather(1, chosen)
    every = torch.stack([gated(weights, f"{name}.{expert}", x, limit) for expert in range(EXPERTS)], 1)
    found = every[torch.arange(len(x))[:, None], chosen] * (shares / shares.sum(-1, keepdim=True))[..., None]
    return found.sum(1)


# ── plamo 3: between norms, windows with a rope of their own ────────────────────────────────────────────────────────

PLAMO3: Config = {
    **LLAMA, "model_type": "plamo3", "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "window_size": 6,
    "sliding_window_pattern": 3, "rope_theta": 50000.0, "rope_local_theta": 10000.0, "tie_word_embeddings": True,
    "rope_scaling_factor": 1, "initial_context_length": None, "scale_embedding": False,
}  # fmt: skip
_SHIFTS = {"pre_mixer": 1.0, "post_mixer": 1 / 5, "pre_mlp": 1.0, "post_mlp": 1 / 5**1.5}


def _plamo3_shapes() -> Shapes:
    shapes = ends()
    del shapes["lm_head.weight"]
    for layer in range(LAYERS):
        name = f"model.layers.layers.{layer}"
        shapes |= {
            f"{name}.mixer.qkv_proj.weight": ((HEADS + 2 * KV_HEADS) * HEAD_DIM, WIDTH),
            f"{name}.mixer.o_proj.weight": (WIDTH, HEADS * HEAD_DIM),
            f"{name}.mlp.gate_up_proj.weight": (2 * INNER, WIDTH),
            f"{name}.mlp.down_proj.weight": (WIDTH, INNER),
        }
        shapes |= norm_shapes(name, *(f"{norm}_norm" for norm in _SHIFTS))
        shapes |= norm_shapes(f"{name}.mixer", "q_norm", "k_norm", width=HEAD_DIM)
    return shapes


def plamo3(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.layers.{layer}"
        is_full = (layer + 1) % config["sliding_window_pattern"] == 0
        theta, window = (config["rope_theta"], None) if is_full else (config["rope_local_theta"], config["window_size"])

        def norm(part: str, y: Tensor, name: str = name) -> Tensor:
            return rms(weights, f"{name}.{part}_norm", y, offset=_SHIFTS[part])

        heads = linear(weights, f"{name}.mixer.qkv_proj", norm("pre_mixer", x)).unflatten(1, (-1, HEAD_DIM))
        q, k, v = heads.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
        q, k = rms(weights, f"{name}.mixer.q_norm", q, 1.0), rms(weights, f"{name}.mixer.k_norm", k, 1.0)
        mixed = attend(rotate(q, theta), rotate(k, theta), v, SCALE, windowed(len(ids), window))
        x = x + norm("post_mixer", linear(weights, f"{name}.mixer.o_proj", mixed))
        gate, up = linear(weights, f"{name}.mlp.gate_up_proj", norm("pre_mlp", x)).chunk(2, -1)
        x = x + norm("post_mlp", linear(weights, f"{name}.mlp.down_proj", F.silu(gate) * up))
    return F.linear(rms(weights, "model.norm", x, 1.0), weights["model.embed_tokens.weight"])


# ── k2 horizon: norms of parts of a token, part of each head rotated, experts ───────────────────────────────────────

HORIZON: Config = {
    **LLAMA, "model_type": "k2_horizon", "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "layernorm_num_groups": 4,
    "query_key_norm": True, "rope_head_dim": 8, "num_experts": EXPERTS, "num_experts_per_tok": 2, "num_shared_experts": 1,
    "moe_intermediate_size": EXPERT_WIDTH, "moe_gate_bias": True, "mlp_only_layers": [0, 2], "decoder_sparse_step": 1,
    "norm_topk_prob": True, "router_scaling_factor": 2.5, "router_score_func": "sigmoid", "attention_gate_func": "softplus",
    "mova_num_experts": EXPERTS, "mova_num_experts_per_tok": 2, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}  # fmt: skip


def _horizon_shapes() -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= attention_shapes(f"{name}.self_attn") | norm_shapes(name, *NORMS)
        shapes |= norm_shapes(f"{name}.self_attn", "q_norm", width=HEADS * HEAD_DIM)
        shapes |= norm_shapes(f"{name}.self_attn", "k_norm", width=KV_HEADS * HEAD_DIM)
        shapes[f"{name}.self_attn.gate_proj.weight"] = (HEADS * HEAD_DIM, WIDTH)
        if layer in HORIZON["mlp_only_layers"]:
            shapes |= gated_shapes(f"{name}.mlp")
            continue
        value = shapes.pop(f"{name}.self_attn.v_proj.weight")
        shapes |= gated_shapes(f"{name}.mlp.shared_experts", EXPERT_WIDTH)
        for router in ("mlp.gate", "self_attn.v_router"):
            shapes |= {f"{name}.{router}.weight": (EXPERTS, WIDTH), f"{name}.{router}.bias": (EXPERTS,)}
        for expert in range(EXPERTS):
            shapes |= gated_shapes(f"{name}.mlp.experts.{expert}", EXPERT_WIDTH)
            shapes[f"{name}.self_attn.v_experts.{expert}.weight"] = value
    return shapes


def _rotate_first_pairs(x: Tensor, width: int) -> Tensor:
    """Rotate those pairs, (i, i + E / 2), that would be the first `width` elements if pairs were neighbours."""
    low, high = x.chunk(2, -1)
    count = width // 2
    turned = rotate(torch.cat((low[..., :count], high[..., :count]), -1))
    first, second = turned.chunk(2, -1)
    return torch.cat((first, low[..., count:], second, high[..., count:]), -1)


def _horizon_heads(config: Config, weights: Weights, name: str, x: Tensor) -> Tensor:
    q, k = (linear(weights, f"{name}.{part}_proj", x) for part in "qk")
    if config["query_key_norm"]:
        q, k = rms(weights, f"{name}.q_norm", q, groups=HEADS), rms(weights, f"{name}.k_norm", k, groups=KV_HEADS)
    q, k = (_rotate_first_pairs(part.unflatten(1, (-1, HEAD_DIM)), config["rope_head_dim"]) for part in (q, k))
    if f"{name}.v_proj.weight" in weights:
        v = linear(weights, f"{name}.v_proj", x)
    else:
        shares = torch.sigmoid(F.linear(x, weights[f"{name}.v_router.weight"]))
        _, chosen = (shares + weights[f"{name}.v_router.bias"]).topk(config["mova_num_experts_per_tok"])
        shares = shares.gather(1, chosen)
        shares = shares / shares.sum(-1, keepdim=True) * config["router_scaling_factor"]
        every = torch.stack([F.silu(linear(weights, f"{name}.v_experts.{expert}", x)) for expert in range(EXPERTS)], 1)
        v = (every[torch.arange(len(x))[:, None], chosen] * shares[..., None]).sum(1)
    mixed = attend(q, k, v.unflatten(1, (-1, HEAD_DIM)), SCALE)
    if kind := config["attention_gate_func"]:
        gate = linear(weights, f"{name}.gate_proj", x)
        mixed = mixed * (F.silu(gate) if kind == "silu" else F.softplus(gate, beta=math.log(2)))
    return linear(weights, f"{name}.o_proj", mixed)


def horizon(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x, groups = weights["model.embed_tokens.weight"][ids], config["layernorm_num_groups"]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        y = rms(weights, f"{name}.input_layernorm", x, groups=groups)
        x = x + _horizon_heads(config, weights, f"{name}.self_attn", y)
        y = rms(weights, f"{name}.post_attention_layernorm", x, groups=groups)
        if layer in config["mlp_only_layers"]:
            x = x + gated(weights, f"{name}.mlp", y)
            continue
        shares = torch.sigmoid(F.linear(y, weights[f"{name}.mlp.gate.weight"]))
        scores = shares + weights[f"{name}.mlp.gate.bias"]
        found = chosen_experts(weights, f"{name}.mlp.experts", y, scores, shares) * config["router_scaling_factor"]
        x = x + gated(weights, f"{name}.mlp.shared_experts", y) + found
    return linear(weights, "lm_head", rms(weights, "model.norm", x, groups=groups))


# ── rnj 1: gemma3 within chunks ─────────────────────────────────────────────────────────────────────────────────────

RNJ1: Config = {
    **{name: value for name, value in LLAMA.items() if name not in ("rope_theta", "hidden_act")},
    "model_type": "rnj1", "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "query_pre_attn_scalar": 24,
    "hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "final_logit_softcapping": 20.0,
    "layer_types": ["chunked_attention", "full_attention", "chunked_attention", "chunked_attention"],
    "sliding_window": 32, "tie_word_embeddings": True,
    "rope_parameters": {
        "chunked_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
    },
}  # fmt: skip
_RNJ1_NORMS = (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def _rnj1_shapes() -> Shapes:
    shapes = ends()
    del shapes["lm_head.weight"]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= attention_shapes(f"{name}.self_attn") | gated_shapes(f"{name}.mlp") | norm_shapes(name, *_RNJ1_NORMS)
        shapes |= norm_shapes(f"{name}.self_attn", "q_norm", "k_norm", width=HEAD_DIM)
    return shapes


def rnj1(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids] * WIDTH**0.5
    chunks = torch.arange(len(ids)) // (config["sliding_window"] // 2)
    far = torch.zeros(len(ids), len(ids)).masked_fill(chunks[:, None] - chunks > 1, -math.inf)
    for layer, kind in enumerate(config["layer_types"]):
        name, theta = f"model.layers.{layer}", config["rope_parameters"][kind]["rope_theta"]
        q, k, v = heads_of(weights, f"{name}.self_attn", rms(weights, f"{name}.input_layernorm", x, 1.0))
        q, k = (rms(weights, f"{name}.self_attn.{part}_norm", each, 1.0) for part, each in (("q", q), ("k", k)))
        hidden = far if kind == "chunked_attention" else 0.0
        mixed = attend(rotate(q, theta), rotate(k, theta), v, config["query_pre_attn_scalar"] ** -0.5, hidden)
        mixed = linear(weights, f"{name}.self_attn.o_proj", mixed)
        x = x + rms(weights, f"{name}.post_attention_layernorm", mixed, 1.0)
        y = rms(weights, f"{name}.pre_feedforward_layernorm", x, 1.0)
        gate = F.gelu(linear(weights, f"{name}.mlp.gate_proj", y), approximate="tanh")
        y = linear(weights, f"{name}.mlp.down_proj", gate * linear(weights, f"{name}.mlp.up_proj", y))
        x = x + rms(weights, f"{name}.post_feedforward_layernorm", y, 1.0)
    logits = F.linear(rms(weights, "model.norm", x, 1.0), weights["model.embed_tokens.weight"])
    return 20 * torch.tanh(logits / 20)


KIN: Mapping[str, Model] = {
    "K2HorizonForCausalLM": (HORIZON, _horizon_shapes(), horizon),
    "Plamo3ForCausalLM": (PLAMO3, _plamo3_shapes(), plamo3),
    "Rnj1ForCausalLM": (RNJ1, _rnj1_shapes(), rnj1),
}
