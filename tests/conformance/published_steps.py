"""Step's models of text: their mathematics, as published, without a cache."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.conformance.published_kin import (
    EXPERT_WIDTH,
    EXPERTS,
    LAYERS,
    NORMS,
    SCALE,
    chosen_experts,
    distances,
    windowed,
)
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

RANK = 40

# ── step 1: roots of distances in the scores ────────────────────────────────────────────────────────────────────────

STEP1: Config = {
    "model_type": "step1", "num_attention_groups": KV_HEADS, "num_hidden_layers": LAYERS,
    **{name: value for name, value in LLAMA.items() if name not in ("num_key_value_heads", "rope_theta")},
}  # fmt: skip


def _step1_shapes() -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= attention_shapes(f"{name}.self_attn") | gated_shapes(f"{name}.mlp") | norm_shapes(name, *NORMS)
    return shapes


def step1(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    slopes = torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8])  # of four heads
    bias = -slopes[:, None, None] * distances(len(ids)).clamp(min=0).sqrt()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        q, k, v = heads_of(weights, f"{name}.self_attn", rms(weights, f"{name}.input_layernorm", x))
        x = x + linear(weights, f"{name}.self_attn.o_proj", attend(q, k, v, SCALE, bias))
        x = x + gated(weights, f"{name}.mlp", rms(weights, f"{name}.post_attention_layernorm", x))
    return linear(weights, "lm_head", rms(weights, "model.norm", x))


# ── step 3: queries by way of something narrow, one key and value, experts ──────────────────────────────────────────

STEP3: Config = {
    "model_type": "step3_text", "num_attention_groups": 1, "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM,
    "share_q_dim": RANK, "moe_num_experts": EXPERTS, "moe_top_k": 2, "moe_intermediate_size": EXPERT_WIDTH,
    "share_expert_dim": INNER, "norm_expert_weight": True, "moe_layers_enum": "1,3", "max_position_embedding": 128,
    **{name: value for name, value in LLAMA.items() if name not in ("num_key_value_heads", "max_position_embeddings")},
}  # fmt: skip


def _step3_shapes() -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        shapes |= norm_shapes(name, *NORMS) | norm_shapes(f"{name}.self_attn", "inter_norm", width=RANK)
        parts = {"q_proj": (RANK, WIDTH), "k_proj": (HEAD_DIM, WIDTH), "v_proj": (HEAD_DIM, WIDTH)}
        parts |= {"wq": (HEADS * HEAD_DIM, RANK), "o_proj": (WIDTH, HEADS * HEAD_DIM)}
        shapes |= {f"{name}.self_attn.{part}.weight": shape for part, shape in parts.items()}
        if layer not in (1, 3):
            shapes |= gated_shapes(f"{name}.mlp")
            continue
        shapes |= gated_shapes(f"{name}.share_expert") | {f"{name}.moe.gate.weight": (EXPERTS, WIDTH)}
        shapes |= {f"{name}.moe.{part}_proj.weight": (EXPERTS, EXPERT_WIDTH, WIDTH) for part in ("gate", "up")}
        shapes[f"{name}.moe.down_proj.weight"] = (EXPERTS, WIDTH, EXPERT_WIDTH)
    return shapes


def one_by_one(weights: Weights, name: str) -> Weights:
    """Take experts apart that are stored in three tensors."""
    return {
        f"{name}.{expert}.{part}_proj.weight": matrix
        for part in ("gate", "up", "down")
        for expert, matrix in enumerate(weights[f"{name}.{part}_proj.weight"])
    }


def step3(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        y = rms(weights, f"{name}.input_layernorm", x)
        narrow = rms(weights, f"{name}.self_attn.inter_norm", linear(weights, f"{name}.self_attn.q_proj", y))
        q = linear(weights, f"{name}.self_attn.wq", narrow).unflatten(1, (HEADS, HEAD_DIM))
        k, v = (linear(weights, f"{name}.self_attn.{part}_proj", y)[:, None] for part in "kv")
        x = x + linear(weights, f"{name}.self_attn.o_proj", attend(rotate(q), rotate(k), v, SCALE))
        y = rms(weights, f"{name}.post_attention_layernorm", x)
        if layer not in (1, 3):
            x = x + gated(weights, f"{name}.mlp", y)
            continue
        shares = linear(weights, f"{name}.moe.gate", y).softmax(-1)
        experts = one_by_one(weights, f"{name}.moe")
        x = x + gated(weights, f"{name}.share_expert", y) + chosen_experts(experts, f"{name}.moe", y, shares, shares)
    return linear(weights, "lm_head", rms(weights, "model.norm", x))


# ── step 3.5: weighed heads, more of them where there are windows, bounded experts ──────────────────────────────────

SLIDING_HEADS = 6
STEP3P5: Config = {
    "model_type": "step3p5", "num_attention_groups": KV_HEADS, "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "attention_other_setting": {
        "attention_type": "sliding_attention", "num_attention_heads": SLIDING_HEADS, "num_attention_groups": KV_HEADS,
        "head_dim": HEAD_DIM,
    },
    "rope_theta": [50000.0, 10000.0, 10000.0, 50000.0, 50000.0], "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5, 0.5],
    "sliding_window": 6, "moe_num_experts": EXPERTS, "moe_top_k": 2, "moe_intermediate_size": EXPERT_WIDTH,
    "share_expert_dim": INNER, "moe_layers_enum": "1,2,3,4", "moe_router_scaling_factor": 3.0, "norm_expert_weight": True,
    "moe_router_activation": "sigmoid", "use_moe_router_bias": True, "use_head_wise_attn_gate": True,
    "swiglu_limits": [0.0, 0.0, 0.0, 0.4, 0.0], "swiglu_limits_shared": [0.0, 0.0, 0.3, 0.0, 0.0],
    "num_nextn_predict_layers": 1, "yarn_only_types": ["full_attention"], "use_rope_layers": [],
    **{name: value for name, value in LLAMA.items() if name not in ("num_key_value_heads", "rope_theta")},
}  # fmt: skip


def _step3p5_shapes() -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        heads = SLIDING_HEADS if layer in (1, 2) else HEADS
        shapes |= attention_shapes(f"{name}.self_attn", heads) | norm_shapes(name, *NORMS)
        shapes |= norm_shapes(f"{name}.self_attn", "q_norm", "k_norm", width=HEAD_DIM)
        shapes[f"{name}.self_attn.g_proj.weight"] = (heads, WIDTH)
        if layer == 0:
            shapes |= gated_shapes(f"{name}.mlp")
            continue
        shapes |= gated_shapes(f"{name}.share_expert")
        shapes |= {f"{name}.moe.gate.weight": (EXPERTS, WIDTH), f"{name}.moe.router_bias": (EXPERTS,)}
        shapes |= {f"{name}.moe.{part}_proj.weight": (EXPERTS, EXPERT_WIDTH, WIDTH) for part in ("gate", "up")}
        shapes[f"{name}.moe.down_proj.weight"] = (EXPERTS, WIDTH, EXPERT_WIDTH)
    return shapes | {f"model.layers.{LAYERS}.eh_proj.weight": (WIDTH, 2 * WIDTH)}  # what guesses further tokens


def _step3p5_heads(config: Config, weights: Weights, layer: int, x: Tensor) -> Tensor:
    name, theta = f"model.layers.{layer}.self_attn", config["rope_theta"][layer]
    width = int(HEAD_DIM * config["partial_rotary_factors"][layer])
    q, k, v = heads_of(weights, name, x)
    q, k = rms(weights, f"{name}.q_norm", q, 1.0), rms(weights, f"{name}.k_norm", k, 1.0)
    q, k = (torch.cat((rotate(part[..., :width], theta), part[..., width:]), -1) for part in (q, k))
    window = config["sliding_window"] if config["layer_types"][layer] == "sliding_attention" else None
    mixed = attend(q, k, v, SCALE, windowed(len(x), window)).unflatten(1, (-1, HEAD_DIM))
    mixed = mixed * torch.sigmoid(linear(weights, f"{name}.g_proj", x))[..., None]
    return linear(weights, f"{name}.o_proj", mixed.flatten(1))


def step3p5(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        limit, shared_limit = (config[field][layer] or None for field in ("swiglu_limits", "swiglu_limits_shared"))
        x = x + _step3p5_heads(config, weights, layer, rms(weights, f"{name}.input_layernorm", x, 1.0))
        y = rms(weights, f"{name}.post_attention_layernorm", x, 1.0)
        if layer == 0:
            x = x + gated(weights, f"{name}.mlp", y, shared_limit)
            continue
        shares = torch.sigmoid(linear(weights, f"{name}.moe.gate", y))
        scores, experts = shares + weights[f"{name}.moe.router_bias"], one_by_one(weights, f"{name}.moe")
        found = chosen_experts(experts, f"{name}.moe", y, scores, shares, limit)
        x = x + gated(weights, f"{name}.share_expert", y, shared_limit) + found * config["moe_router_scaling_factor"]
    return linear(weights, "lm_head", rms(weights, "model.norm", x, 1.0))


STEPS: Mapping[str, Model] = {
    "Step1ForCausalLM": (STEP1, _step1_shapes(), step1),
    "Step3TextForCausalLM": (STEP3, _step3_shapes(), step3),
    "Step3p5ForCausalLM": (STEP3P5, _step3p5_shapes(), step3p5),
}
