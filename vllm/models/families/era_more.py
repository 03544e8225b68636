"""More models published with code of their own: those that differ from llama and gpt2 in more than names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi
from vllm.models.families.era import known
from vllm.models.families.gpt import CAUSAL_MASKS, GPT2_NAMES, gpt2_decoder, multi_head
from vllm.models.families.llama import attention_of, decoder_of, llama, mlp_of
from vllm.models.families.moe import MIXTRAL_NAMES
from vllm.models.spec import (
    EntrySpec,
    HeadSpec,
    LayerSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
    SkipSpec,
    TransformerSpec,
)

JAIS_NAMES: Mapping[str, str] = {
    **GPT2_NAMES,
    "up": "transformer.h.{i}.mlp.c_fc",
    "gate": "transformer.h.{i}.mlp.c_fc2",
}

ARCTIC_NAMES: Mapping[str, str] = {
    **MIXTRAL_NAMES,
    "gate": "model.layers.{i}.residual_mlp.w1",
    "up": "model.layers.{i}.residual_mlp.w3",
    "down": "model.layers.{i}.residual_mlp.w2",
    "norm2": "model.layers.{i}.residual_layernorm",
    "norm_beside": "model.layers.{i}.post_attention_layernorm",
}


def jais(config: Any) -> TransformerSpec:
    """Gpt2 with distances in the scores, a gate, and factors for embeddings, scores and logits."""
    _refuse_other_jais(config)
    logits_scale = getattr(config, "width_scale", None) or config.mup_output_alpha * config.mup_width_scale
    return gpt2_decoder(
        config,
        _jais_layer(config),
        JAIS_NAMES,
        NormSpec("layer", config.layer_norm_eps),
        entry=EntrySpec(config.vocab_size, scale=_of_either(config, "embeddings_scale", "mup_embeddings_scale")),
        tied=getattr(config, "tie_word_embeddings", True),
        head=HeadSpec(scale=logits_scale),
        transposed=True,
        ignored_names=(*CAUSAL_MASKS, "*relative_pe.*"),
    )


def _jais_layer(config: Any) -> LayerSpec:
    attention = multi_head(config.hidden_size, config.num_attention_heads, layout="concat", position_bias=Alibi())
    if _of_either(config, "scale_qk_dot_by_d", "mup_scale_qk_dot_by_d"):
        attention = replace(attention, scale=attention.head_dim**-1.0)
    width = config.intermediate_size or 4 * config.hidden_size
    return LayerSpec(attention, MlpSpec(width, config.hidden_act, up_bias=True, down_bias=True))


def _refuse_other_jais(config: Any) -> None:
    if config.position_embedding_type != "alibi" or getattr(config, "hidden_act", None) != "silu":
        raise ModelError(
            f"position_embedding_type={config.position_embedding_type!r}, "
            f"activation_function={getattr(config, 'activation_function', 'swiglu')!r}: of jais, those with 'alibi' and "
            "'swiglu' are supported"
        )


def solar(config: Any) -> TransformerSpec:
    """Llama whose hidden states are mixed with earlier ones before some layers."""
    config = known(config)
    share = config.bskcn_tv[1]  # the first one is for training
    skips = [*_skips(config.bskcn_1, config.bskcn_3, share), *_skips(config.bskcn_2, config.bskcn_4, share)]
    return replace(llama(config), skips=tuple(skips))


def arctic(config: Any) -> TransformerSpec:
    """Mixtral whose experts read what a layer reads, beside its attention and a feed-forward that every token passes."""
    config = known(config)
    frequency, is_parallel = (getattr(config, name, None) for name in ("moe_layer_frequency", "parallel_attn_mlp_res"))
    if frequency != 1 or not is_parallel:
        raise ModelError(
            f"moe_layer_frequency={frequency}, parallel_attn_mlp_res={is_parallel}: of arctic, those with experts beside "
            "every layer (1, True) are supported"
        )
    experts = (config.num_local_experts, config.num_experts_per_tok, config.intermediate_size)
    moe = MoeSpec(*experts, config.hidden_act, renormalize=config.num_experts_per_tok > 1)
    layer = LayerSpec(attention_of(config), mlp_of(config, width=config.hidden_size), "beside", moe)
    return decoder_of(config, layer, names=ARCTIC_NAMES)


def _of_either(config: Any, older: str, newer: str) -> Any:
    """Return a field under the name that the first checkpoints have for it, or under that of the later ones."""
    return getattr(config, older) if hasattr(config, older) else getattr(config, newer)


def _skips(sources: Sequence[int], targets: Sequence[int], share: float) -> list[SkipSpec]:
    """Pair each target with the last source before it."""
    found = []
    for target in targets:
        before = [source for source in sources if source <= target]
        if not before:
            raise ModelError(f"nothing is kept before layer {target} that is mixed in there; check the bskcn_ fields")
        found.append(SkipSpec(max(before), target, share))
    return found
