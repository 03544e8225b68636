"""Encoders with decoders as the first transformer was: bart and what came of it, and whisper, which hears."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from vllm.errors import ModelError
from vllm.layers.cross import Hearing
from vllm.models.families.gpt import multi_head, plain_mlp
from vllm.models.spec import EntrySpec, HeadSpec, LayerSpec, NormSpec, PositionsSpec, TransformerSpec

_SIDE_NAMES: Mapping[str, str] = {
    "positions": "embed_positions",
    "embed_norm": "layernorm_embedding",
    "norm": "layer_norm",
}
_LAYER_NAMES: Mapping[str, str] = {
    "norm1": "self_attn_layer_norm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "norm_cross": "encoder_attn_layer_norm",
    "cross_q": "encoder_attn.q_proj",
    "cross_k": "encoder_attn.k_proj",
    "cross_v": "encoder_attn.v_proj",
    "cross_o": "encoder_attn.out_proj",
    "norm2": "final_layer_norm",
    "up": "fc1",
    "down": "fc2",
}
WHISPER_NAMES: Mapping[str, str] = {"conv1": "model.encoder.conv1", "conv2": "model.encoder.conv2"}
IGNORED = ("*.embed_positions.weights", "*.version", "lm_head.weight")
"""What checkpoints hold a second time, or needlessly."""
TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
"""What they hold a second and a third time where the two share it."""

_Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """In what one differs from another."""

    block: Literal["pre", "post"]
    """A branch's norm is before it, and one follows the last layer; or it is behind it"""
    embed_norm: bool = False
    offset: int = 0
    """The row of position 0"""
    waves: Literal["", "vaswani", "fairseq"] = ""
    bias: str | None = "final_logits_bias"
    """Of the logits"""
    k_bias: bool = True


def bart(config: Any) -> TransformerSpec:
    """Bart and plbart."""
    return _both(config, _Kind("post", embed_norm=True, offset=2))


def mbart(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre", embed_norm=True, offset=2))


def blenderbot(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre"))


def pegasus(config: Any) -> TransformerSpec:
    return _both(config, _Kind("pre", waves="vaswani"))


def marian(config: Any) -> TransformerSpec:
    """Marian; a pair of languages may have a table each."""
    return _both(config, _Kind("post", waves="vaswani"))


def m2m_100(config: Any) -> TransformerSpec:
    """M2M-100 and nllb."""
    return _both(config, _Kind("pre", waves="fairseq", offset=2, bias=None))


def _both(config: Any, kind: _Kind) -> TransformerSpec:
    positions = PositionsSpec(config.max_position_embeddings, kind.offset, kind.waves)
    entry = EntrySpec(config.vocab_size, _scale(config), positions=positions, norm=kind.embed_norm)
    separate = _has_separate_tables(config)
    tables = [f"model.{side}.embed_tokens" if separate else "model.shared" for side in ("encoder", "decoder")]
    return replace(
        _side(config, "decoder", kind, entry, tables[1]),
        head=HeadSpec(bias=kind.bias is not None, bias_name=kind.bias),
        ignored_names=IGNORED if separate else (*TABLES, *IGNORED),
        encoder=_side(config, "encoder", kind, entry, tables[0]),
    )


def _has_separate_tables(config: Any) -> bool:
    """Whether encoder and decoder have a table of embeddings each.  Raises ModelError if they are of different sizes."""
    if getattr(config, "share_encoder_decoder_embeddings", True):
        return False
    target_size = getattr(config, "decoder_vocab_size", None)
    if target_size not in (None, config.vocab_size):
        raise ModelError(
            f"decoder_vocab_size={target_size}: a decoder whose vocabulary is of another size than its encoder's "
            f"({config.vocab_size}) is not supported"
        )
    return True


def whisper(config: Any) -> TransformerSpec:
    """Whisper: an encoder of sounds, whose positions are stored though they are waves."""
    kind, hearing = _Kind("pre", k_bias=False), Hearing(config.num_mel_bins, config.activation_function)
    sound = EntrySpec(0, positions=PositionsSpec(config.max_source_positions), hearing=hearing)
    text = EntrySpec(config.vocab_size, _scale(config), positions=PositionsSpec(config.max_target_positions))
    encoder = _side(config, "encoder", kind, sound, "")
    decoder = _side(config, "decoder", kind, text, "model.decoder.embed_tokens")
    encoder = replace(encoder, names={**encoder.names, **WHISPER_NAMES})
    return replace(decoder, names={**decoder.names, "head": "proj_out"}, encoder=encoder)


def _scale(config: Any) -> float:
    return math.sqrt(config.d_model) if config.scale_embedding else 1.0


def _side(config: Any, side: _Side, kind: _Kind, entry: EntrySpec, table: str) -> TransformerSpec:
    layers = (_layer(config, side, kind),) * getattr(config, f"{side}_layers")
    names, norm = _names(side, table), NormSpec("layer", 1e-5)
    return TransformerSpec(entry, config.d_model, layers, norm, names, final_norm=kind.block == "pre")


def _layer(config: Any, side: _Side, kind: _Kind) -> LayerSpec:
    heads, width = getattr(config, f"{side}_attention_heads"), getattr(config, f"{side}_ffn_dim")
    causal = multi_head(config.d_model, heads, k_bias=kind.k_bias)
    unmasked, mlp = replace(causal, causal=False), plain_mlp(width, config.activation_function)
    if side == "encoder":
        return LayerSpec(unmasked, mlp, kind.block)
    return LayerSpec(causal, mlp, "pre_cross" if kind.block == "pre" else "post_cross", cross=unmasked)


def _names(side: str, table: str) -> Mapping[str, str]:
    """Return the names of one side, whose table of embeddings is called so."""
    names = {role: f"model.{side}.{name}" for role, name in _SIDE_NAMES.items()}
    names |= {role: f"model.{side}.layers.{{i}}.{name}" for role, name in _LAYER_NAMES.items()}
    return {"embed": table, "head": "lm_head", **names}
