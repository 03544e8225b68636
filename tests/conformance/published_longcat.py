"""Longcat flash lite, which transformers has no class for: its mathematics, as published, without a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.published_parts import attend, rotate
from tests.conformance.tiny import VOCAB

Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
LAYERS, HEADS, INNER, NARROW, EXPERTS, IDLE, RATIO = 2, 4, 48, 32, 4, 2, 3
QUERY, LATENT, PLAIN, TURNED, VALUE = 24, 32, 16, 8, 12
LONGEST, SPLITS, END = 4, 2, 204  # which is in one of the suite's prompts
TABLES = SPLITS * (LONGEST - 1)
WIDTH = 11 * TABLES
LONGCAT: Mapping[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "ffn_hidden_size": INNER, "expert_ffn_hidden_size": NARROW,
    "num_layers": LAYERS, "num_attention_heads": HEADS, "kv_lora_rank": LATENT, "q_lora_rank": QUERY,
    "qk_rope_head_dim": TURNED, "qk_nope_head_dim": PLAIN, "v_head_dim": VALUE, "n_routed_experts": EXPERTS,
    "zero_expert_num": IDLE, "zero_expert_type": "identity", "moe_topk": 2, "routed_scaling_factor": 1.5,
    "rope_theta": 1e4, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "eos_token_id": END,
    "ngram_vocab_size_ratio": RATIO, "emb_neighbor_num": LONGEST, "emb_split_num": SPLITS, "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}  # fmt: skip


def longcat_shapes() -> Shapes:
    """Return the shapes of its tensors."""
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCAB, WIDTH), "lm_head.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,),
    }  # fmt: skip
    for table in range(TABLES):
        name = "model.ngram_embeddings"
        shapes[f"{name}.embedders.{table}.weight"] = (RATIO * VOCAB + 2 * table + 1, WIDTH // TABLES)
        shapes[f"{name}.post_projs.{table}.weight"] = (WIDTH, WIDTH // TABLES)
    attention: Shapes = {
        "q_a_proj": (QUERY, WIDTH), "q_a_layernorm": (QUERY,), "q_b_proj": (HEADS * (PLAIN + TURNED), QUERY),
        "kv_a_proj_with_mqa": (LATENT + TURNED, WIDTH), "kv_a_layernorm": (LATENT,),
        "kv_b_proj": (HEADS * (PLAIN + VALUE), LATENT), "o_proj": (WIDTH, HEADS * VALUE),
    }  # fmt: skip
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for half in (0, 1):
            shapes |= {f"{name}.self_attn.{half}.{part}.weight": size for part, size in attention.items()}
            shapes |= _network(f"{name}.mlps.{half}", INNER)
            shapes |= {f"{name}.{norm}_layernorm.{half}.weight": (WIDTH,) for norm in ("input", "post_attention")}
        for expert in range(EXPERTS):
            shapes |= _network(f"{name}.mlp.experts.{expert}", NARROW)
        shapes[f"{name}.mlp.router.classifier.weight"] = (EXPERTS + IDLE, WIDTH)
        shapes[f"{name}.mlp.router.e_score_correction_bias"] = (EXPERTS + IDLE,)
    return shapes


def _network(name: str, inner: int) -> Shapes:
    return {
        f"{name}.gate_proj.weight": (inner, WIDTH),
        f"{name}.up_proj.weight": (inner, WIDTH),
        f"{name}.down_proj.weight": (WIDTH, inner),
    }


def longcat(config: Mapping[str, Any], weights: Weights, ids: Tensor) -> Tensor:
    """Return the logits behind each token.  [n] -> [n, V]"""
    x = _entry(weights, ids.tolist())
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        x = x + _attention(weights, f"{name}.self_attn.0", _norm(weights, f"{name}.input_layernorm.0", x))
        y = _norm(weights, f"{name}.post_attention_layernorm.0", x)
        shortcut = _experts(config, weights, f"{name}.mlp", y)
        x = x + _feed(weights, f"{name}.mlps.0", y)
        x = x + _attention(weights, f"{name}.self_attn.1", _norm(weights, f"{name}.input_layernorm.1", x))
        x = x + _feed(weights, f"{name}.mlps.1", _norm(weights, f"{name}.post_attention_layernorm.1", x)) + shortcut
    return F.linear(_norm(weights, "model.norm", x), weights["lm_head.weight"])


def _entry(weights: Weights, ids: list[int]) -> Tensor:
    """An n-gram is a number whose digits are its tokens, those of another text being 0; tables know its remainders."""
    rows = []
    for place, token in enumerate(ids):
        begin = max((other + 1 for other in range(place) if ids[other] == END), default=0)
        total = weights["model.embed_tokens.weight"][token]
        for length in range(2, LONGEST + 1):
            digits = [ids[place - back] if place - back >= begin else 0 for back in range(length)]
            number = sum(digit * VOCAB**power for power, digit in enumerate(digits))
            for split in range(SPLITS):
                table = (length - 2) * SPLITS + split
                stored = weights[f"model.ngram_embeddings.embedders.{table}.weight"]
                project = weights[f"model.ngram_embeddings.post_projs.{table}.weight"]
                total = total + project @ stored[number % len(stored)]
        rows.append(total / (1 + TABLES))
    return torch.stack(rows)


def _norm(weights: Weights, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weights[f"{name}.weight"]


def _feed(weights: Weights, name: str, x: Tensor) -> Tensor:
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def _experts(config: Mapping[str, Any], weights: Weights, name: str, x: Tensor) -> Tensor:
    scores = F.linear(x, weights[f"{name}.router.classifier.weight"]).softmax(-1)
    chosen = (scores + weights[f"{name}.router.e_score_correction_bias"]).topk(config["moe_topk"]).indices
    kept = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen)) * config["routed_scaling_factor"]
    found = kept[:, EXPERTS:].sum(1, keepdim=True) * x
    for expert in range(EXPERTS):
        found = found + kept[:, expert, None] * _feed(weights, f"{name}.experts.{expert}", x)
    return found


def _attention(weights: Weights, name: str, x: Tensor) -> Tensor:
    def linear(part: str, y: Tensor) -> Tensor:
        return F.linear(y, weights[f"{name}.{part}.weight"])

    q = linear("q_b_proj", _norm(weights, f"{name}.q_a_layernorm", linear("q_a_proj", x), 1e-6))
    q = (q * (WIDTH / QUERY) ** 0.5).unflatten(1, (HEADS, -1))
    latent, turned = linear("kv_a_proj_with_mqa", x).split((LATENT, TURNED), 1)
    latent = _norm(weights, f"{name}.kv_a_layernorm", latent, 1e-6) * (WIDTH / LATENT) ** 0.5
    k, v = linear("kv_b_proj", latent).unflatten(1, (HEADS, -1)).split((PLAIN, VALUE), 2)
    q = torch.cat((q[..., :PLAIN], _rotate(q[..., PLAIN:])), -1)
    k = torch.cat((k, _rotate(turned[:, None]).expand(-1, HEADS, -1)), -1)
    return linear("o_proj", attend(q, k, v, (PLAIN + TURNED) ** -0.5))


def _rotate(x: Tensor) -> Tensor:
    """Neighbours are pairs; which element comes where doesn't matter for a product of two such."""
    return rotate(torch.cat((x[..., ::2], x[..., 1::2]), -1))
