"""Qwen3-Next and Qwen3.5: gated delta nets, with gated attention on every fourth layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.families.moe import QWEN2_NAMES
from vllm.models.spec import LayerSpec, MoeSpec, NormSpec, TransformerSpec
from vllm.models.spec_recurrent import DeltaNetSpec

_MIXER = "model.layers.{i}.linear_attn"
_DELTA_NAMES: Mapping[str, str] = {
    "conv": f"{_MIXER}.conv1d",
    "a_log": f"{_MIXER}.A_log",
    "dt_bias": f"{_MIXER}.dt_bias",
    "mixer_norm": f"{_MIXER}.norm",
    "leave": f"{_MIXER}.out_proj",
}
NEXT_NAMES: Mapping[str, str] = {
    **QWEN2_NAMES,
    **_DELTA_NAMES,
    "enter": f"{_MIXER}.in_proj_qkvz",
    "control": f"{_MIXER}.in_proj_ba",
}
NAMES_3_5: Mapping[str, str] = {
    **NAMES,
    **_DELTA_NAMES,
    "enter": f"{_MIXER}.in_proj_qkv",
    "enter_gate": f"{_MIXER}.in_proj_z",
    "beta": f"{_MIXER}.in_proj_b",
    "decay": f"{_MIXER}.in_proj_a",
}
MOE_NAMES_3_5: Mapping[str, str] = {**QWEN2_NAMES, **NAMES_3_5}
_DRAFTS = ("*.rotary_emb.inv_freq", "mtp.*")
"""Checkpoints have layers that guess further tokens."""


def qwen3_next(config: Any) -> TransformerSpec:
    """With experts on every layer, and one that every token passes."""
    moe = _experts(config, config.norm_topk_prob)

    def layer(index: int) -> LayerSpec:
        sparse = config.num_experts > 0 and (index + 1) % config.decoder_sparse_step == 0
        ffn = moe if sparse and index not in config.mlp_only_layers else mlp_of(config)
        return LayerSpec(_mixer(config, index, "per_group"), ffn)

    return decoder_of(config, layer, _norm(config), names=NEXT_NAMES, ignored_names=_DRAFTS)


def qwen3_5(config: Any) -> TransformerSpec:
    """With a gated feed-forward, and tensors of their own for what a delta net is made of."""
    mlp = mlp_of(config)
    return decoder_of(
        config,
        lambda index: LayerSpec(_mixer(config, index, "split"), mlp),
        _norm(config),
        names=NAMES_3_5,
        ignored_names=_DRAFTS,
    )


def qwen3_5_moe(config: Any) -> TransformerSpec:
    """With experts on every layer, and one that every token passes."""
    moe = _experts(config, renormalize=True)
    return decoder_of(
        config,
        lambda index: LayerSpec(_mixer(config, index, "split"), moe),
        _norm(config),
        names=MOE_NAMES_3_5,
        ignored_names=_DRAFTS,
    )


def _experts(config: Any, renormalize: bool) -> MoeSpec:
    experts = (config.num_experts, config.num_experts_per_tok, config.moe_intermediate_size)
    shared = config.shared_expert_intermediate_size
    return MoeSpec(*experts, config.hidden_act, renormalize, shared_width=shared, shared_gate=True)


def _norm(config: Any) -> NormSpec:
    return NormSpec("rms", config.rms_norm_eps, offset=1.0)


def _mixer(config: Any, index: int, layout: Any) -> Any:
    if config.layer_types[index] == "full_attention":
        bias = config.attention_bias
        return attention_of(config, head_norm="head", bias=bias, gated=True)
    return DeltaNetSpec(
        config.linear_num_key_heads,
        config.linear_num_value_heads,
        config.linear_key_head_dim,
        config.linear_value_head_dim,
        config.linear_conv_kernel_dim,
        config.hidden_act,
        layout,
        config.rms_norm_eps,
    )
