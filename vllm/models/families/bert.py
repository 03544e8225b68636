"""The bert line: encoders with learned positions and norms behind each branch; some with a bias for distances instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.layers.position_bias import Alibi, Buckets
from vllm.models.families.gpt import multi_head, plain_mlp
from vllm.models.families.rotary_encoder import jina_v3
from vllm.models.spec import EntrySpec, LayerSpec, MlpSpec, NormSpec, PositionsSpec, TransformerSpec

IGNORED = (
    "*.position_ids",
    "*.rotary_emb.inv_freq",
    "*pooler.dense.*",
    "cls.*",
    "lm_head.*",
    "classifier.*",
    "qa_outputs.*",
)
"""What checkpoints of encoders hold beside the encoder: heads of what they were trained or tuned for."""

NAMES: Mapping[str, str] = {
    "embed": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "token_types": "bert.embeddings.token_type_embeddings",
    "embed_norm": "bert.embeddings.LayerNorm",
    "q": "bert.encoder.layer.{i}.attention.self.query",
    "k": "bert.encoder.layer.{i}.attention.self.key",
    "v": "bert.encoder.layer.{i}.attention.self.value",
    "o": "bert.encoder.layer.{i}.attention.output.dense",
    "norm1": "bert.encoder.layer.{i}.attention.output.LayerNorm",
    "up": "bert.encoder.layer.{i}.intermediate.dense",
    "down": "bert.encoder.layer.{i}.output.dense",
    "norm2": "bert.encoder.layer.{i}.output.LayerNorm",
}

JINA_NAMES: Mapping[str, str] = {
    **NAMES,
    "gate_up": "bert.encoder.layer.{i}.mlp.gated_layers",
    "down": "bert.encoder.layer.{i}.mlp.wo",
    "norm2": "bert.encoder.layer.{i}.mlp.layernorm",
}

DISTIL_NAMES: Mapping[str, str] = {
    "embed": "distilbert.embeddings.word_embeddings",
    "positions": "distilbert.embeddings.position_embeddings",
    "embed_norm": "distilbert.embeddings.LayerNorm",
    "q": "distilbert.transformer.layer.{i}.attention.q_lin",
    "k": "distilbert.transformer.layer.{i}.attention.k_lin",
    "v": "distilbert.transformer.layer.{i}.attention.v_lin",
    "o": "distilbert.transformer.layer.{i}.attention.out_lin",
    "norm1": "distilbert.transformer.layer.{i}.sa_layer_norm",
    "up": "distilbert.transformer.layer.{i}.ffn.lin1",
    "down": "distilbert.transformer.layer.{i}.ffn.lin2",
    "norm2": "distilbert.transformer.layer.{i}.output_layer_norm",
}

_ALBERT_LAYER = "albert.encoder.albert_layer_groups.0.albert_layers.0"
ALBERT_NAMES: Mapping[str, str] = {
    "embed": "albert.embeddings.word_embeddings",
    "positions": "albert.embeddings.position_embeddings",
    "token_types": "albert.embeddings.token_type_embeddings",
    "embed_norm": "albert.embeddings.LayerNorm",
    "project_in": "albert.encoder.embedding_hidden_mapping_in",
    "q": f"{_ALBERT_LAYER}.attention.query",
    "k": f"{_ALBERT_LAYER}.attention.key",
    "v": f"{_ALBERT_LAYER}.attention.value",
    "o": f"{_ALBERT_LAYER}.attention.dense",
    "norm1": f"{_ALBERT_LAYER}.attention.LayerNorm",
    "up": f"{_ALBERT_LAYER}.ffn",
    "down": f"{_ALBERT_LAYER}.ffn_output",
    "norm2": f"{_ALBERT_LAYER}.full_layer_layer_norm",
}

_MPNET_ATTENTION: Mapping[str, str] = {
    "relative_bias": "mpnet.encoder.relative_attention_bias",
    "q": "mpnet.encoder.layer.{i}.attention.attn.q",
    "k": "mpnet.encoder.layer.{i}.attention.attn.k",
    "v": "mpnet.encoder.layer.{i}.attention.attn.v",
    "o": "mpnet.encoder.layer.{i}.attention.attn.o",
    "norm1": "mpnet.encoder.layer.{i}.attention.LayerNorm",
}

_GLU_ACTIVATIONS = {"geglu": "gelu", "reglu": "relu"}


def bert(config: Any) -> TransformerSpec:
    """Bert, and what was trained like it."""
    _refuse_positions(config, "absolute")
    return _encoder(config, "bert.", PositionsSpec(config.max_position_embeddings))


def roberta(config: Any) -> TransformerSpec:
    """Roberta, xlm-roberta and camembert: positions come after the padding's; some have rotary ones."""
    if getattr(config, "position_embedding_type", "absolute") == "rotary":
        return jina_v3(config)
    _refuse_positions(config, "absolute")
    return _encoder(config, "roberta.", _behind_padding(config, config.pad_token_id))


def electra(config: Any) -> TransformerSpec:
    """Bert with narrower embeddings, which are projected once they are summed up."""
    _refuse_positions(config, "absolute")
    spec = _encoder(config, "electra.", PositionsSpec(config.max_position_embeddings))
    width = None if config.embedding_size == config.hidden_size else config.embedding_size
    return replace(
        spec,
        entry=replace(spec.entry, width=width),
        names={**spec.names, "project_in": "electra.embeddings_project"},
        ignored_names=(*IGNORED, "discriminator_predictions.*", "generator_predictions.*", "generator_lm_head.*"),
    )


def albert(config: Any) -> TransformerSpec:
    """Bert with one layer that is gone through again and again, and projected embeddings."""
    _refuse_positions(config, "absolute")
    for name in ("num_hidden_groups", "inner_group_num"):
        if (found := getattr(config, name)) != 1:
            raise ModelError(f"{name}={found} is not supported; only an albert of 1 is, whose layers are all the same")
    spec = _encoder(config, "albert.", PositionsSpec(config.max_position_embeddings))
    return replace(
        spec,
        entry=replace(spec.entry, width=config.embedding_size),
        names=ALBERT_NAMES,
        ignored_names=(*IGNORED, "albert.pooler.*", "predictions.*", "sop_classifier.*"),
    )


def distilbert(config: Any) -> TransformerSpec:
    """Bert without types of tokens."""
    attention = multi_head(config.dim, config.n_heads, causal=False)
    layer = LayerSpec(attention, plain_mlp(config.hidden_dim, config.activation), "post")
    return TransformerSpec(
        EntrySpec(config.vocab_size, positions=PositionsSpec(config.max_position_embeddings), norm=True),
        config.dim,
        (layer,) * config.n_layers,
        NormSpec("layer", 1e-12),
        DISTIL_NAMES,
        final_norm=False,
        base_prefix="distilbert.",
        ignored_names=(*IGNORED, "pre_classifier.*", "vocab_*"),
    )


def mpnet(config: Any) -> TransformerSpec:
    """Roberta with a learned bias for distances, and without types of tokens."""
    spec = _encoder(config, "mpnet.", _behind_padding(config, 1))
    bias = Buckets(config.relative_attention_num_buckets)
    layers = tuple(replace(layer, mixer=replace(layer.attention, position_bias=bias)) for layer in spec.layers)
    return replace(
        spec, entry=replace(spec.entry, token_types=0), layers=layers, names={**spec.names, **_MPNET_ATTENTION}
    )


def jina_bert(config: Any) -> TransformerSpec:
    """Jina embeddings v2: bert with a penalty for distances instead of positions, and gates."""
    _refuse_positions(config, "alibi")
    kind = getattr(config, "feed_forward_type", "original")
    if kind not in _GLU_ACTIVATIONS:
        raise ModelError(f"feed_forward_type={kind!r} is not supported; only {', '.join(_GLU_ACTIVATIONS)} are")
    spec = _encoder(config, "bert.", None)
    attention = replace(spec.layers[0].attention, position_bias=Alibi())
    mlp = MlpSpec(config.intermediate_size, _GLU_ACTIVATIONS[kind], down_bias=True, layout="gate_up")
    return replace(spec, layers=(LayerSpec(attention, mlp, "post"),) * config.num_hidden_layers, names=JINA_NAMES)


def _encoder(config: Any, prefix: str, positions: PositionsSpec | None) -> TransformerSpec:
    """Return an encoder of the bert line with the names of bert under another prefix."""
    if getattr(config, "is_decoder", False):
        raise ModelError("is_decoder=True: a model of the bert line that generates is not supported; only encoders are")
    types = getattr(config, "type_vocab_size", 0)
    entry = EntrySpec(config.vocab_size, positions=positions, token_types=types, norm=True)
    attention = multi_head(config.hidden_size, config.num_attention_heads, causal=False)
    layer = LayerSpec(attention, plain_mlp(config.intermediate_size, config.hidden_act), "post")
    layers, norm = (layer,) * config.num_hidden_layers, NormSpec("layer", config.layer_norm_eps)
    names = {role: name.replace("bert.", prefix, 1) for role, name in NAMES.items()}
    spec = TransformerSpec(entry, config.hidden_size, layers, norm, names, final_norm=False)
    return replace(spec, base_prefix=prefix, ignored_names=IGNORED)


def _behind_padding(config: Any, padding: int) -> PositionsSpec:
    """Return positions of which the first ones, up to the padding's, are never used."""
    return PositionsSpec(config.max_position_embeddings - padding - 1, padding + 1)


def _refuse_positions(config: Any, known: str) -> None:
    kind = getattr(config, "position_embedding_type", known) or known
    if kind != known:
        raise ModelError(f"position_embedding_type={kind!r} is not supported for this architecture; only {known!r} is")
