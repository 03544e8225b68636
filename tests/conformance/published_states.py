"""Recurrent models that transformers has no class for: their mathematics, as published, without a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.conformance.published_parts import attend, rotate
from tests.conformance.tiny import VOCAB

# ── plamo 2: state spaces with heads between norms; windows ─────────────────────────────────────────────────────────

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM, STATE_HEADS, STATE, KERNEL, RANK = 64, 48, 4, 4, 2, 16, 6, 8, 4, 64
WINDOW = 8
PLAMO2: Mapping[str, Any] = {
    "model_type": "plamo2",
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "hidden_size_per_head": HEAD_DIM,
    "rms_norm_eps": 1e-6, "attention_window_size": WINDOW, "full_attention_idx": [3], "max_position_embeddings": 128,
    "mamba_num_heads": STATE_HEADS, "mamba_d_state": STATE, "mamba_d_conv": KERNEL, "mamba_step": 2,
    "tie_word_embeddings": True,
}  # fmt: skip
_ATTENDING = (1, 3)
_SHIFTS = {"pre_mixer": 1.0, "post_mixer": 1 / 5, "pre_mlp": 1.0, "post_mlp": 1 / 5**1.5}


def plamo2_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of its tensors."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH), "model.norm.weight": (WIDTH,)}
    inner, channels = HEADS * HEAD_DIM, STATE_HEADS * HEAD_DIM
    attention: dict[str, tuple[int, ...]] = {
        "qkv_proj.weight": (inner + 2 * KV_HEADS * HEAD_DIM, WIDTH), "o_proj.weight": (WIDTH, inner),
        "q_weight": (HEADS, HEAD_DIM), "k_weight": (KV_HEADS, HEAD_DIM),
    }  # fmt: skip
    states: dict[str, tuple[int, ...]] = {
        "in_proj.weight": (2 * channels, WIDTH), "conv1d.weight": (channels, 1, KERNEL),
        "bcdt_proj.weight": (2 * STATE + RANK, channels), "dt_proj.weight": (STATE_HEADS, RANK),
        "dt_norm_weight": (RANK,), "B_norm_weight": (STATE,), "C_norm_weight": (STATE,),
        "dt_bias": (STATE_HEADS,), "A_log": (STATE_HEADS,), "D": (STATE_HEADS,), "out_proj.weight": (WIDTH, channels),
    }  # fmt: skip
    for layer in range(LAYERS):
        name = f"model.layers.layers.{layer}"
        mixer = attention if layer in _ATTENDING else states
        shapes |= {f"{name}.mixer.{part}": shape for part, shape in mixer.items()}
        shapes |= {f"{name}.{norm}_norm.weight": (WIDTH,) for norm in _SHIFTS}
        shapes |= {
            f"{name}.mlp.gate_up_proj.weight": (2 * INNER, WIDTH),
            f"{name}.mlp.down_proj.weight": (WIDTH, INNER),
        }
    return shapes


def plamo2(config: Mapping[str, Any], weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Return the logits behind each token.  [n] -> [n, V]"""
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        name = f"model.layers.layers.{layer}"
        own = {part.removeprefix(f"{name}."): tensor for part, tensor in weights.items() if part.startswith(f"{name}.")}
        window = None if layer in config["full_attention_idx"] else config["attention_window_size"]
        y = _rms(x) * (_SHIFTS["pre_mixer"] + own["pre_mixer_norm.weight"])
        y = _plamo2_attention(own, y, window) if layer in _ATTENDING else _plamo2_states(own, y)
        x = x + _rms(y) * (_SHIFTS["post_mixer"] + own["post_mixer_norm.weight"])
        y = _rms(x) * (_SHIFTS["pre_mlp"] + own["pre_mlp_norm.weight"])
        gate, up = F.linear(y, own["mlp.gate_up_proj.weight"]).chunk(2, -1)
        y = F.linear(F.silu(gate) * up, own["mlp.down_proj.weight"])
        x = x + _rms(y) * (_SHIFTS["post_mlp"] + own["post_mlp_norm.weight"])
    return F.linear(_rms(x) * (1 + weights["model.norm.weight"]), weights["model.embed_tokens.weight"])


def _rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _plamo2_attention(own: dict[str, Tensor], x: Tensor, window: int | None) -> Tensor:
    q, k, v = (
        F.linear(x, own["mixer.qkv_proj.weight"]).unflatten(1, (-1, HEAD_DIM)).split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    )
    q, k = rotate(_rms(q) * own["mixer.q_weight"]), rotate(_rms(k) * own["mixer.k_weight"])
    behind = torch.arange(len(x))[:, None] - torch.arange(len(x))
    hidden = torch.zeros(behind.shape).masked_fill(behind > (len(x) if window is None else window), -math.inf)
    return F.linear(attend(q, k, v, HEAD_DIM**-0.5, hidden), own["mixer.o_proj.weight"])


def _plamo2_states(own: dict[str, Tensor], x: Tensor) -> Tensor:
    gate, inputs = F.linear(x, own["mixer.in_proj.weight"]).unflatten(1, (STATE_HEADS, -1)).chunk(2, -1)
    inputs = F.pad(inputs.flatten(1).T, (KERNEL - 1, 0))
    inputs = F.silu(F.conv1d(inputs, own["mixer.conv1d.weight"], groups=len(inputs))).T
    b, c, step = F.linear(inputs, own["mixer.bcdt_proj.weight"]).split((STATE, STATE, RANK), dim=1)
    b, c = _rms(b) * own["mixer.B_norm_weight"], _rms(c) * own["mixer.C_norm_weight"]
    step = F.linear(_rms(step) * own["mixer.dt_norm_weight"], own["mixer.dt_proj.weight"])
    step = F.softplus(step + own["mixer.dt_bias"])[..., None, None]  # [n, H, 1, 1]
    heads, state = inputs.unflatten(1, (STATE_HEADS, HEAD_DIM)), torch.zeros(STATE_HEADS, HEAD_DIM, STATE)
    rates, found = -own["mixer.A_log"].exp()[:, None, None], []
    for index, head in enumerate(heads):
        state = state * torch.exp(step[index] * rates) + step[index] * head[..., None] * b[index]
        found.append(state @ c[index] + own["mixer.D"][:, None] * head)
    return F.linear((torch.stack(found) * F.silu(gate)).flatten(1), own["mixer.out_proj.weight"])
