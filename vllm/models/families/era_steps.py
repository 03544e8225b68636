"""Step's models of text: 1 knows positions by the roots of distances, 3 makes queries by way of something narrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.layers.position_bias import Alibi
from vllm.models.families.era import known
from vllm.models.families.llama import NAMES, attention_of, decoder_of, mlp_of
from vllm.models.spec import LayerSpec, MoeSpec, TransformerSpec

STEP3_NAMES: Mapping[str, str] = {
    **NAMES,
    "q_a_norm": "model.layers.{i}.self_attn.inter_norm",
    "q_b": "model.layers.{i}.self_attn.wq",
    "router": "model.layers.{i}.moe.gate",
    "experts_gate": "model.layers.{i}.moe.gate_proj.weight",
    "experts_up": "model.layers.{i}.moe.up_proj.weight",
    "experts_down": "model.layers.{i}.moe.down_proj.weight",
    "shared_gate": "model.layers.{i}.share_expert.gate_proj",
    "shared_up": "model.layers.{i}.share_expert.up_proj",
    "shared_down": "model.layers.{i}.share_expert.down_proj",
}


def step1(config: Any) -> TransformerSpec:
    """Llama with roots of distances in the scores instead of rotated heads."""
    tied = getattr(config, "tie_word_embeddings", True)
    config = known(config, num_key_value_heads="num_attention_groups")
    bias, mlp_bias = (getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))
    attention = attention_of(config, bias=bias, rope=None, position_bias=Alibi(root=True))
    return decoder_of(config, LayerSpec(attention, mlp_of(config, bias=mlp_bias)), tied=tied)


def step3(config: Any) -> TransformerSpec:
    """Llama whose heads share one key and value, with queries made by way of something narrow, and experts on most layers."""
    config = known(config, max_position_embeddings="max_position_embedding")
    attention = attention_of(config, kv_heads=1, query_rank=config.share_q_dim or config.head_dim)
    experts = (config.moe_num_experts, config.moe_top_k, config.moe_intermediate_size, config.hidden_act)
    moe = MoeSpec(*experts, config.norm_expert_weight, shared_width=config.share_expert_dim, layout="apart")
    mlp, sparse = mlp_of(config), _sparse_layers(config)
    return decoder_of(
        config, lambda index: LayerSpec(attention, moe if index in sparse else mlp), names=STEP3_NAMES, tied=False
    )


def _sparse_layers(config: Any) -> frozenset[int]:
    """Return which layers have experts: those that are named, or all but the first."""
    named = getattr(config, "moe_layers_enum", None)
    if named is None:
        return frozenset(range(1, config.num_hidden_layers))
    return frozenset(int(number) for number in named.split(","))
