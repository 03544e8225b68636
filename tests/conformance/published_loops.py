"""Models that pass their layers several times: their mathematics, as published, without a cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.conformance.published_llama import (
    HEAD_DIM,
    HEADS,
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

LAYERS, PASSES, WINDOW = 2, 3, 6
_SCALE = HEAD_DIM**-0.5


def _shapes(*more_norms: str) -> Shapes:
    shapes = ends()
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        norms = ("input_layernorm", "post_attention_layernorm", *more_norms)
        shapes |= attention_shapes(f"{name}.self_attn") | gated_shapes(f"{name}.mlp") | norm_shapes(name, *norms)
    return shapes


# ── nanbeige 4.2: a norm behind each pass ───────────────────────────────────────────────────────────────────────────

NANBEIGE: Config = {**LLAMA, "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "num_loops": PASSES}


def nanbeige(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for number in range(config["num_loops"]):
        for layer in range(LAYERS):
            name = f"model.layers.{layer}"
            q, k, v = heads_of(weights, f"{name}.self_attn", rms(weights, f"{name}.input_layernorm", x))
            x = x + linear(weights, f"{name}.self_attn.o_proj", attend(rotate(q), rotate(k), v, _SCALE))
            x = x + gated(weights, f"{name}.mlp", rms(weights, f"{name}.post_attention_layernorm", x))
        if not config.get("skip_loop_final_norm") or number == config["num_loops"] - 1:
            x = rms(weights, "model.norm", x)
    return linear(weights, "lm_head", x)


# ── ouro: norms before and behind branches, too ─────────────────────────────────────────────────────────────────────

OURO: Config = {
    **LLAMA, "num_hidden_layers": LAYERS, "total_ut_steps": PASSES, "early_exit_threshold": 1.0, "use_sliding_window": False,
}  # fmt: skip


def _ouro_shapes() -> Shapes:
    gate: Shapes = {"model.early_exit_gate.weight": (1, WIDTH), "model.early_exit_gate.bias": (1,)}
    return _shapes("input_layernorm_2", "post_attention_layernorm_2") | gate


def ouro(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x = weights["model.embed_tokens.weight"][ids]
    for _ in range(config["total_ut_steps"]):
        for layer in range(LAYERS):
            name = f"model.layers.{layer}"
            q, k, v = heads_of(weights, f"{name}.self_attn", rms(weights, f"{name}.input_layernorm", x))
            y = linear(weights, f"{name}.self_attn.o_proj", attend(rotate(q), rotate(k), v, _SCALE))
            x = x + rms(weights, f"{name}.input_layernorm_2", y)
            y = gated(weights, f"{name}.mlp", rms(weights, f"{name}.post_attention_layernorm", x))
            x = x + rms(weights, f"{name}.post_attention_layernorm_2", y)
        x = rms(weights, "model.norm", x)
    return linear(weights, "lm_head", x)


# ── IQuest's loop coder: later passes have windows, and attend to the first one ─────────────────────────────────────

LOOP_CODER: Config = {
    **LLAMA, "num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "loop_num": PASSES, "loop_window_size": WINDOW,
    "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def _loop_coder_shapes() -> Shapes:
    gates: Shapes = {}
    for layer in range(LAYERS):
        name = f"model.gate_projections.{layer}"
        gates |= {f"{name}.weight": (HEADS, HEAD_DIM), f"{name}.bias": (HEADS,)}
    return _shapes() | gates


def loop_coder(config: Config, weights: Weights, ids: Tensor) -> Tensor:
    x, places = weights["model.embed_tokens.weight"][ids], torch.arange(len(ids))
    far = places[:, None] - places >= config["loop_window_size"]
    hidden = torch.zeros(len(ids), len(ids)).masked_fill(far, -math.inf)
    kept: dict[int, tuple[Tensor, Tensor]] = {}
    for number in range(config["loop_num"]):
        for layer in range(LAYERS):
            name = f"model.layers.{layer}"
            q, k, v = heads_of(weights, f"{name}.self_attn", rms(weights, f"{name}.input_layernorm", x))
            q, k = rotate(q), rotate(k)
            if number == 0:
                kept[layer] = (k, v)
                mixed = attend(q, k, v, _SCALE)
            else:
                gate = f"model.gate_projections.{layer}"
                share = torch.sigmoid((q * weights[f"{gate}.weight"]).sum(-1) + weights[f"{gate}.bias"])
                share = share.repeat_interleave(HEAD_DIM, 1)
                mixed = share * attend(q, *kept[layer], _SCALE) + (1 - share) * attend(q, k, v, _SCALE, hidden)
            x = x + linear(weights, f"{name}.self_attn.o_proj", mixed)
            x = x + gated(weights, f"{name}.mlp", rms(weights, f"{name}.post_attention_layernorm", x))
    return linear(weights, "lm_head", rms(weights, "model.norm", x))


LOOPS: Mapping[str, Model] = {
    "IQuestLoopCoderForCausalLM": (LOOP_CODER, _loop_coder_shapes(), loop_coder),
    "NanbeigeForCausalLM": (NANBEIGE, _shapes(), nanbeige),
    "OuroForCausalLM": (OURO, _ouro_shapes(), ouro),
}
