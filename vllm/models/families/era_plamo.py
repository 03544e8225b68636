"""Plamo between norms: 2 has state spaces with heads, and attention on some layers; 3 has attention alone.

Published with code of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.era import known
from vllm.models.families.llama import attention_of, decoder_of
from vllm.models.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec
from vllm.models.spec_recurrent import MambaSpec

_LAYER = "model.layers.layers.{i}"
NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "norm1": f"{_LAYER}.pre_mixer_norm",
    "norm1_after": f"{_LAYER}.post_mixer_norm",
    "norm2": f"{_LAYER}.pre_mlp_norm",
    "norm2_after": f"{_LAYER}.post_mlp_norm",
    "qkv": f"{_LAYER}.mixer.qkv_proj",
    "o": f"{_LAYER}.mixer.o_proj",
    "q_norm": f"{_LAYER}.mixer.q_weight",
    "k_norm": f"{_LAYER}.mixer.k_weight",
    "enter": f"{_LAYER}.mixer.in_proj",
    "conv": f"{_LAYER}.mixer.conv1d",
    "select": f"{_LAYER}.mixer.bcdt_proj",
    "spread": f"{_LAYER}.mixer.dt_proj",
    "dt_norm": f"{_LAYER}.mixer.dt_norm_weight",
    "b_norm": f"{_LAYER}.mixer.B_norm_weight",
    "c_norm": f"{_LAYER}.mixer.C_norm_weight",
    "leave": f"{_LAYER}.mixer.out_proj",
    "a_log": f"{_LAYER}.mixer.A_log",
    "skip": f"{_LAYER}.mixer.D",
    "dt_bias": f"{_LAYER}.mixer.dt_bias",
    "gate_up": f"{_LAYER}.mlp.gate_up_proj",
    "down": f"{_LAYER}.mlp.down_proj",
}
_SHIFTS = {"norm": 1.0, "norm1": 1.0, "norm1_after": 1 / 5, "norm2": 1.0, "norm2_after": 1 / 5**1.5}


def plamo2(config: Any) -> TransformerSpec:
    """Attention on every so many layers, with a window unless the layer is named among those without."""
    tied = getattr(config, "tie_word_embeddings", True)
    config = known(config, head_dim="hidden_size_per_head")
    mlp = MlpSpec(config.intermediate_size, "silu", layout="gate_up")

    def layer(index: int) -> LayerSpec:
        return LayerSpec(_attention(config, index) if _attends(config, index) else _states(config), mlp, "sandwich")

    return decoder_of(config, layer, names=NAMES, norm_shifts=_SHIFTS, tied=tied)


def _attends(config: Any, index: int) -> bool:
    half = config.mamba_step // 2
    if not getattr(config, "mamba_enabled", True):
        return True
    return (
        index == config.num_hidden_layers - 1 if config.num_hidden_layers <= half else index % config.mamba_step == half
    )


def _attention(config: Any, index: int) -> AttentionSpec:
    is_full = index in (getattr(config, "full_attention_idx", None) or ())
    window = None if is_full else config.attention_window_size + 1  # which counts those before a token
    return attention_of(config, window=window, layout="concat", own_norms=NormSpec("rms", 1e-6))


def _states(config: Any) -> MambaSpec:
    return MambaSpec(
        config.mamba_num_heads * config.head_dim,
        config.mamba_d_state,
        config.mamba_d_conv,
        max(64, config.hidden_size // 16),
        "silu",
        conv_bias=False,
        norm="weighted",
        norm_eps=config.rms_norm_eps,
        heads=config.mamba_num_heads,
    )


PLAMO3_NAMES: Mapping[str, str] = {
    **NAMES,
    "q_norm": f"{_LAYER}.mixer.q_norm",
    "k_norm": f"{_LAYER}.mixer.k_norm",
}
_PLAMO3_SHIFTS = {**_SHIFTS, "q_norm": 1.0, "k_norm": 1.0}


def plamo3(config: Any) -> TransformerSpec:
    """Layers with windows and a rope of their own between those that see all; norms on the heads of q and k."""
    if getattr(config, "scale_embedding", False):
        raise ModelError("scale_embedding=True: a plamo 3 with scaled embeddings is not supported; use one without")
    tied = getattr(config, "tie_word_embeddings", True)
    config, window = known(config), _plamo3_window(config)
    config.rope_parameters = _plamo3_ropes(config)
    mlp = MlpSpec(config.intermediate_size, "silu", layout="gate_up")
    local = _plamo3_attention(config, "sliding_attention", window)
    kinds = (local,) * (config.sliding_window_pattern - 1) + (_plamo3_attention(config, "full_attention", None),)
    layers = [LayerSpec(kinds[index % len(kinds)], mlp, "sandwich") for index in range(config.num_hidden_layers)]
    return decoder_of(config, layers.__getitem__, names=PLAMO3_NAMES, norm_shifts=_PLAMO3_SHIFTS, tied=tied)


def _plamo3_attention(config: Any, kind: str, window: int | None) -> AttentionSpec:
    return attention_of(config, kind, window=window, layout="concat", head_norm="head")


def _plamo3_window(config: Any) -> int:
    """Return the size of the windows, under its name or under the one it had first: a number, or one for each layer."""
    found = getattr(config, "sliding_window", None) or config.window_size
    sizes = {size for size in found if size is not None} if isinstance(found, list) else {found}
    if len(sizes) != 1:
        raise ModelError(f"sliding_window={found}: of plamo 3, those with windows of one size are supported")
    return int(sizes.pop())


def _plamo3_ropes(config: Any) -> dict[str, Any]:
    theta = getattr(config, "rope_theta", None) or config.rope_global_theta
    full: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if (factor := getattr(config, "rope_scaling_factor", 1)) != 1:
        original = config.initial_context_length
        full |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, "truncate": False}
    local = {"rope_type": "default", "rope_theta": config.rope_local_theta}
    return {"full_attention": full, "sliding_attention": local}
