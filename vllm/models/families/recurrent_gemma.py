"""Recurrent gemma: gated linear recurrences, and attention within a window on every third layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vllm.models.families.llama import attention_of, decoder_of
from vllm.models.spec import EntrySpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec
from vllm.models.spec_recurrent import LruSpec

_LAYER = "model.layers.{i}"
_MIXER, _FFN = f"{_LAYER}.temporal_block", f"{_LAYER}.mlp_block"
NAMES: Mapping[str, str] = {
    "embed": "model.embed_tokens",
    "norm": "model.final_norm",
    "head": "lm_head",
    "norm1": f"{_LAYER}.temporal_pre_norm",
    "norm2": f"{_LAYER}.channel_pre_norm",
    "q": f"{_MIXER}.q_proj",
    "k": f"{_MIXER}.k_proj",
    "v": f"{_MIXER}.v_proj",
    "o": f"{_MIXER}.o_proj",
    "enter": f"{_MIXER}.linear_x",
    "enter_gate": f"{_MIXER}.linear_y",
    "conv": f"{_MIXER}.conv_1d",
    "lru": f"{_MIXER}.rg_lru",
    "leave": f"{_MIXER}.linear_out",
    "gate": f"{_FFN}.gate_proj",
    "up": f"{_FFN}.up_proj",
    "down": f"{_FFN}.down_proj",
}


def recurrent_gemma(config: Any) -> TransformerSpec:
    """Norms around 1, scaled embeddings and capped logits, as gemma has."""
    attention = attention_of(config, qkv_bias=config.attention_bias, out_bias=True, window=config.attention_window_size)
    lru = LruSpec(config.lru_width, config.num_attention_heads, config.conv1d_width, config.hidden_activation)
    # the config's width is that of gate and up together
    mlp = MlpSpec(config.intermediate_size // 2, config.hidden_activation, up_bias=True, down_bias=True)

    def layer(index: int) -> LayerSpec:
        return LayerSpec(lru if config.layers_block_type[index] == "linear_attention" else attention, mlp)

    norm, head = NormSpec("rms", config.rms_norm_eps, offset=1.0), HeadSpec(softcap=config.logits_soft_cap or 0.0)
    entry = EntrySpec(config.vocab_size, scale=_root(config.hidden_size))
    return decoder_of(config, layer, norm, entry=entry, head=head, names=NAMES)


def _root(width: int) -> float:
    """Return √width as bfloat16 has it, in which the model was trained."""
    return torch.tensor(width**0.5, dtype=torch.bfloat16).item()
