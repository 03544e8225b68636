"""MiniMax: lightning attention, and softmax attention on some layers; branches are added to what norms have made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.models.families.llama import attention_of, decoder_of
from vllm.models.families.moe import MIXTRAL_NAMES
from vllm.models.spec import LayerSpec, MoeSpec, TransformerSpec
from vllm.models.spec_recurrent import LightningSpec

_MIXER = "model.layers.{i}.self_attn"
NAMES: Mapping[str, str] = {
    **MIXTRAL_NAMES,
    "qkv": f"{_MIXER}.qkv_proj",
    "enter_gate": f"{_MIXER}.output_gate",
    "mixer_norm": f"{_MIXER}.norm",
    "leave": f"{_MIXER}.out_proj",
}
_STORED_TOO = ("*.rotary_emb.inv_freq", "*.slope_rate", "*.query_decay", "*.key_decay", "*.diagonal_decay")
"""What follows from the config"""


def minimax(config: Any) -> TransformerSpec:
    """Experts on every layer; both sides of each sum are weighted."""
    attention = attention_of(config, window=config.sliding_window)
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, renormalize=True, scale=config.mlp_beta_factor)

    def layer(index: int) -> LayerSpec:
        is_full = config.layer_types[index] == "full_attention"
        share = config.full_attn_alpha_factor if is_full else config.linear_attn_alpha_factor
        mixer = attention if is_full else _lightning(config, index)
        return LayerSpec(mixer, moe, "on_norm", shares=(share, config.mlp_alpha_factor))

    scales = {"o": (config.full_attn_beta_factor,) * 2, "leave": (config.linear_attn_beta_factor,) * 2}
    return decoder_of(config, layer, names=NAMES, scales=scales, ignored_names=_STORED_TOO)


def _lightning(config: Any, index: int) -> LightningSpec:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    faster = 1 - index / (config.num_hidden_layers - 1 + 1e-5) + 1e-5  # the first layer forgets fastest
    rates = tuple(-faster * 2 ** (-8 * (head + 1) / heads) for head in range(heads))
    return LightningSpec(heads, head_dim, config.hidden_act, rates)
