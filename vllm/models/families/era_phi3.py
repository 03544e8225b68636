"""Phi 3 small: heads that see blocks of tokens, each others; a bounded gate; muP's factors.  Published with code of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm.errors import ModelError
from vllm.kv_cache.spec import BlockPattern
from vllm.models.families.era import known
from vllm.models.families.gpt_kin import PERSIMMON_NAMES
from vllm.models.families.llama import attention_of, decoder_of
from vllm.models.spec import AttentionSpec, EntrySpec, HeadSpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec
from vllm.ops.activations import Clamp

NAMES: Mapping[str, str] = {
    **PERSIMMON_NAMES,
    "gate_up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}
_SPARE = (100256, 100258, 100259, 100260, 100264, 100265, *range(100267, 100352))
"""What its tokenizer has for the sake of their number alone, and those of cl100k_base that it makes no use of"""


def phi3small(config: Any) -> TransformerSpec:
    """Layer norms and biases everywhere; every so many layers heads see all of the prompt."""
    config = known(config, intermediate_size="ff_intermediate_size", rope_theta="rope_embedding_base")
    config.rope_parameters, mlp = _rope(config), _mlp(config)
    return decoder_of(
        config,
        lambda index: LayerSpec(_attention(config, index), mlp),
        norm=NormSpec("layer", config.layer_norm_epsilon),
        names=NAMES,
        entry=EntrySpec(config.vocab_size, scale=config.mup_embedding_multiplier or 1.0),
        head=_head(config),
        tied=True,
    )


def _attention(config: Any, index: int) -> AttentionSpec:
    head_dim, every = config.hidden_size // config.num_attention_heads, config.dense_attention_every_n_layers
    scale = config.mup_attn_multiplier / head_dim if config.mup_use_scaling else head_dim**-0.5
    blocks = None if every and (index + 1) % every == 0 else _pattern(config)
    return attention_of(config, scale=scale, layout="per_group", qkv_bias=True, out_bias=True, blocks=blocks)


def _head(config: Any) -> HeadSpec:
    unused = getattr(config, "dummy_token_indices", _SPARE if config.vocab_size > _SPARE[-1] else ())
    return HeadSpec(scale=1 / (config.mup_width_multiplier or 1.0), own_or_tied=True, never=tuple(unused))


def _rope(config: Any) -> dict[str, Any]:
    """Return parameters that say how long rotated vectors become; where nothing is stretched, that positions are multiplied."""
    given = {**config.rope_parameters, "rope_theta": config.rope_embedding_base}
    if "long_factor" not in given:
        return {**given, "rope_type": "linear", "factor": 1 / getattr(config, "rope_position_scale", 1.0)}
    short, long = (max(0.0, given.get(name) or 0.0) for name in ("short_mscale", "long_mscale"))
    return {**given, "rope_type": "longrope", "short_mscale": short or 1.0, "long_mscale": long}


def _pattern(config: Any) -> BlockPattern:
    """Return which blocks heads see: neighbouring heads neighbouring ones, unless all see the same."""
    stride, heads = config.blocksparse_vert_stride, config.num_attention_heads
    step = 0 if config.blocksparse_homo_head_pattern else max(1, stride // heads)
    phases = tuple(-(head * step + 1) % stride for head in range(heads))
    return BlockPattern(config.blocksparse_block_size, config.blocksparse_num_local_blocks, stride, phases)


def _mlp(config: Any) -> MlpSpec:
    if config.hidden_act != "gegelu" or not config.intermediate_size:
        raise ModelError(
            f"hidden_act={config.hidden_act!r}, ff_intermediate_size={config.intermediate_size}: of phi 3 small, those with "
            "'gegelu' and a width are supported"
        )
    clamp = Clamp(config.gegelu_limit, 1.0)
    return MlpSpec(config.intermediate_size, "quick_gelu", up_bias=True, down_bias=True, layout="turns", clamp=clamp)
