"""A tiny checkpoint with random weights of any architecture that transformers has, from its configuration class alone."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VOCAB = 320

_SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"), VOCAB),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim", "lru_width"), 64
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    **dict.fromkeys(("attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "kv_channels", "attention_head_dim", "attention_head_size", "d_head"), 16),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 96
    ),
    **dict.fromkeys(("intermediate_size_mlp", "dff", "dim_ff", "feed_forward_size", "d_inner"), 96),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions", "context_length"), 512
    ),
    **dict.fromkeys(("max_source_positions", "original_max_position_embeddings"), 64),
    # mixtures of experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("prefix_dense_intermediate_size", "dense_intermediate_size"), 96),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    **dict.fromkeys(("router_hidden_size", "shared_experts_intermediate_size"), 32),
    # latent attention
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 32),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "o_lora_rank"), 16),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 16),
    **dict.fromkeys(("index_n_heads", "indexer_n_heads", "o_groups"), 2),
    "index_topk": 8, "index_block_size": 4,
    # windows, small enough to bite
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_chunk_size", "window_size"), 8),
    **dict.fromkeys(("attention_window_size",), 8), "local_attention": 16, "block_size": 16,
    # recurrent layers
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "state_size", "mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_dt_rank", "mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("time_step_rank",), 8), **dict.fromkeys(("mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    "mamba_d_conv": 4, "mamba_expand": 2, "n_mamba_heads": 2, "mamba_d_ssm": 128, "attention_hidden_size": 128,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_num_heads": 4,
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    # the rest
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "sep_token_id", "forced_eos_token_id"), None),
    "eod_token_id": None, "decoder_start_token_id": 1, "type_vocab_size": 2, "rotary_dim": 8, "laurel_rank": 8,
    "query_pre_attn_scalar": 16, "hidden_size_per_layer_input": 16, "num_nextn_predict_layers": 0, "num_mtp_layers": 0,
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout", "hidden_dropout"), 0.0),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "activation_dropout"), 0.0),
}  # fmt: skip
"""What a field of a configuration is set to, whichever class it is of."""

_MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_OWN: dict[str, dict[str, Any]] = {
    **{
        kind: {"num_key_value_heads": 4}
        for kind in (
            *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3"),
            *("youtu", "hy_v4", "dots3_note_text", "sarvam_mla"),
        )
    },
    **{
        kind: {"pad_token_id": 0}
        for kind in (
            *("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
            *("xlm", "modernbert-decoder"),
        )
    },
    "longcat_flash": {"num_key_value_heads": 4, "num_layers": 2, "num_hidden_layers": 4, "zero_expert_num": 3},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": _MIXED},
    "kimi_linear": {"layer_types": _MIXED, "num_key_value_heads": 4},
    # transformers stores three convolutions of one size, whatever size they have
    "olmo_hybrid": {"linear_num_key_heads": 4},
    "bailing_hybrid": {"layer_group_size": 2, "num_key_value_heads": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": {"full_attn_idxs": [1, 3], "layer_types": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    # transformers limits the time steps of a prompt and not those of single tokens behind it
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention", "full_attention"],
        "time_step_min": 1e-6,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "num_mem_blocks": 1,
        "time_step_min": 1e-6,
    },
    "zamba": {"num_hidden_layers": 6, "layers_block_type": ["linear_attention", "linear_attention", "hybrid"] * 2},
    **{
        kind: {
            "num_hidden_layers": 6, "num_kv_shared_layers": 2, "global_head_dim": 16, "pad_token_id": 0,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        }
        for kind in ("gemma4_text", "gemma4_unified_text")
    },
    "gemma3n_text": {
        "num_hidden_layers": 6, "num_kv_shared_layers": 2, "activation_sparsity_pattern": None, "intermediate_size": 96,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
    "gemma3_text": {"num_hidden_layers": 6},
    "qwen4_exp_text": {"indexer_kv_heads": 1, "indexer_budget": 8, "indexer_compress_ratio": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "full_attention": None,
        },
    },
    "dots3_note_audio_encoder": {"adapter_out_dim": 64},
    "dory": {"n_input_layers": 1, "n_output_layers": 1},
    "dots3_note_vision_encoder": {"mlp_layer_types": ["dense"] * 4, "adapter_in_dim": 64, "adapter_out_dim": 64},
    "emu3_text_model": {"pad_token_id": 0},
    "prophetnet": {"pad_token_id": 0},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": [16, 32], "axial_pos_embds_dim": [32, 32], "hash_seed": 0,
        "attn_layers": ["local", "lsh"] * 2,
    },
    "xmod": {"pad_token_id": 0, "default_language": "en_XX"},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "mamba": {"intermediate_size": None},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    # transformers makes room for states as if keys were as wide as values
    "xlstm": {"num_blocks": 4, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "rwkv": {"attention_hidden_size": 64},
}  # fmt: skip
"""What single model types need beside or instead."""

_PUBLISHED = {"exaone": "ExaoneForCausalLM"}
"""What checkpoints call an architecture, where transformers computes it by another's class."""
_STORED = {
    "kimi_linear": (r"block_sparse_moe\.(gate|up|down)_proj", r"mlp.\1_proj"),
    "olmo_hybrid": (r"(layers\.3\.)feedforward_layer_norm", r"\1post_attention_layernorm"),
}
"""How checkpoints call tensors, where transformers stores them under another name that it also knows"""

_DECODERS = frozenset(
    [
        "bert",
        "roberta",
        "electra",
        "ernie",
        "camembert",
        "data2vec-text",
        "big_bird",
        "bert-generation",
        "megatron-bert",
        "rembert",
        "roc_bert",
        "roformer",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    ]
)
"""Types whose decoder is an encoder that is told so."""

_LEFT = re.compile(r"A_log|dt_bias|\.D$|inv_freq|dt_proj|e_score_correction|r_factor|time_|lambda")
"""Parameters that mean something only as they are initialised."""


def tiny_config(model_type: str, changes: Mapping[str, Any] | None = None) -> Any:
    """Return a small configuration of a model type.  Raises whatever its class raises for what can't be."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    config = _built(kind, _values(kind) | dict(changes or {}))
    if model_type in _DECODERS:
        config.is_decoder = True
    return config


def save_tiny(model_type: str, folder: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """Write a tiny checkpoint; return transformers' model of it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, changes), attn_implementation="eager").eval()
    randomize(model)
    model.save_pretrained(folder)
    if model_type in _STORED:
        _rename(folder / "model.safetensors", *_STORED[model_type])
    file = folder / "config.json"
    written = json.loads(file.read_text())
    file.write_text(json.dumps(written | {"architectures": [_PUBLISHED.get(model_type, type(model).__name__)]}))
    return type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def _rename(file: Path, pattern: str, name: str) -> None:
    from safetensors.torch import load, save_file

    stored = load(file.read_bytes())
    save_file({re.sub(pattern, name, key): tensor for key, tensor in stored.items()}, file, {"format": "pt"})


@torch.no_grad()
def randomize(model: Any) -> None:
    """Spread a model's weights so that its logits differ and every token before matters."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if _LEFT.search(name) or not parameter.is_floating_point():
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(
                noise * (0.6 if "embed" in name or "wte" in name else 1.6 / max(parameter.shape[-1], 16) ** 0.5)
            )
        else:
            parameter.copy_(parameter.nan_to_num(0.0, 0.0, 0.0) + 0.2 * noise)
    for name, correction in (*model.named_parameters(), *model.named_buffers()):
        if "e_score" in name or name.endswith("expert_bias"):
            correction.copy_(torch.randn(correction.shape, generator=generator) * 0.1)
        if name.endswith("layer_scalar"):
            correction.copy_(torch.rand(correction.shape, generator=generator) + 0.3)


def _values(kind: Any) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    known = known or set(inspect.signature(kind.__init__).parameters)
    parts = getattr(kind, "sub_configs", None) or {}
    values = {name: value for name, value in _SIZES.items() if name in known and name not in parts}
    own = _OWN.get(getattr(kind, "model_type", ""), {})
    values |= {name: value for name, value in own.items() if name in known}
    default: Any = None
    for name, part in parts.items():
        if name not in known or name in own:
            continue
        if not inspect.isclass(part) or part.__name__ == "AutoConfig":
            try:
                default = default or kind()
                part = type(getattr(default, name))
            except Exception:  # a class that can't be made without arguments keeps its own
                continue
            if part in (type(None), dict):
                continue
        values[name] = _built(part, _values(part))
    return values


def _built(kind: Any, values: dict[str, Any]) -> Any:
    """Make a configuration, leaving out what its class refuses by name."""
    for _ in range(12):
        try:
            return kind(**values)
        except Exception as error:
            refused = [name for name in values if re.search(rf"\b{re.escape(name)}\b", str(error))]
            if not refused:
                raise
            values = {name: value for name, value in values.items() if name not in refused}
    return kind(**values)
