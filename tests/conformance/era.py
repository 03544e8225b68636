"""Checkpoints in formats that transformers doesn't know, made from models of transformers that compute the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conformance.tiny import randomize, tiny_config

State = dict[str, Tensor]


@dataclass(frozen=True)
class Format:
    """How a known model is written down under another architecture's name."""

    model_type: str
    """Of transformers' model that computes the same"""
    config: Callable[[Any], dict[str, Any]]
    weights: Callable[[State, Any], State]
    changes: Mapping[str, Any]


def save(architecture: str, folder: Path) -> Any:
    """Write a tiny checkpoint of an architecture; return transformers' model that computes the same."""
    from transformers import AutoModelForCausalLM

    form = FORMATS[architecture]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        tiny_config(form.model_type, {"tie_word_embeddings": False, **form.changes}), attn_implementation="eager"
    ).eval()
    randomize(model)
    config = {"architectures": [architecture], "model_type": architecture.lower(), "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config | form.config(model.config)))
    weights = {
        name: tensor.contiguous() for name, tensor in form.weights(dict(model.state_dict()), model.config).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def _sizes(config: Any, **names: str) -> dict[str, Any]:
    """Return llama's sizes under llama's names, or under others."""
    known = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "hidden_act",
    )  # fmt: skip
    return {names.get(name, name): getattr(config, name) for name in known if hasattr(config, name)}


def _renamed(*pairs: tuple[str, str]) -> Callable[[State, Any], State]:
    def rename(state: State, config: Any) -> State:
        found = {}
        for name, tensor in state.items():
            for pattern, other in pairs:
                name = re.sub(pattern, other, name)
            found[name] = tensor
        return found

    return rename


def _packed(
    rename: Callable[[State, Any], State], name: str, parts: str, pack: Callable[[list[Tensor], Any], Tensor]
) -> Callable[[State, Any], State]:
    """Pack q, k and v (`parts` with {p} and {i}) into one tensor `name`, after renaming."""

    def packed(state: State, config: Any) -> State:
        state = rename(state, config)
        for index in range(config.num_hidden_layers):
            for end in ("weight", "bias"):
                names = [f"{parts.format(p=part, i=index)}.{end}" for part in "qkv"]
                if names[0] in state:
                    state[f"{name.format(i=index)}.{end}"] = pack([state.pop(each) for each in names], config)
        return state

    return packed


def _in_a_row(parts: list[Tensor], config: Any) -> Tensor:
    return torch.cat(parts)


def _by_group(parts: list[Tensor], config: Any) -> Tensor:
    groups = [part.unflatten(0, (config.num_key_value_heads, -1)) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 1)


_ATTENTION = "model.layers.{i}.self_attn.{p}_proj"
_SAME = _renamed()
_INTERNLM2 = _renamed(
    (r"embed_tokens", "tok_embeddings"), (r"^lm_head", "output"), (r"self_attn\.o_proj", "attention.wo"),
    (r"input_layernorm", "attention_norm"), (r"post_attention_layernorm", "ffn_norm"), (r"mlp\.gate_proj", "feed_forward.w1"),
    (r"mlp\.up_proj", "feed_forward.w3"), (r"mlp\.down_proj", "feed_forward.w2"),
)  # fmt: skip
_EXAONE = _renamed(
    (r"model\.embed_tokens", "transformer.wte"), (r"model\.norm", "transformer.ln_f"), (r"model\.layers", "transformer.h"),
    (r"input_layernorm", "ln_1"), (r"post_attention_layernorm", "ln_2"), (r"self_attn\.o_proj", "attn.attention.out_proj"),
    (r"self_attn", "attn.attention"), (r"gate_proj", "c_fc_0"), (r"up_proj", "c_fc_1"), (r"down_proj", "c_proj"),
)  # fmt: skip
_QWEN1 = _renamed(
    (r"model\.embed_tokens", "transformer.wte"), (r"model\.norm", "transformer.ln_f"), (r"model\.layers", "transformer.h"),
    (r"input_layernorm", "ln_1"), (r"post_attention_layernorm", "ln_2"), (r"self_attn\.o_proj", "attn.c_proj"),
    (r"mlp\.gate_proj", "mlp.w2"), (r"mlp\.up_proj", "mlp.w1"), (r"mlp\.down_proj", "mlp.c_proj"),
)  # fmt: skip
_CHATGLM = _renamed(
    (r"model\.embed_tokens", "transformer.embedding.word_embeddings"), (r"^lm_head", "transformer.output_layer"),
    (r"model\.norm", "transformer.encoder.final_layernorm"), (r"model\.layers", "transformer.encoder.layers"),
    (r"self_attn\.o_proj", "self_attention.dense"), (r"gate_up_proj", "dense_h_to_4h"), (r"down_proj", "dense_4h_to_h"),
)  # fmt: skip


def _telechat2(state: State, config: Any) -> State:
    state = _renamed(
        (r"model\.embed_tokens", "transformer.word_embeddings"), (r"model\.norm", "transformer.ln_f"),
        (r"model\.layers", "transformer.h"), (r"self_attn\.q_proj", "self_attention.query"),
        (r"self_attn\.o_proj", "self_attention.dense"),
    )(state, config)  # fmt: skip
    for index in range(config.num_hidden_layers):
        pair = [state.pop(f"transformer.h.{index}.self_attn.{part}_proj.weight") for part in "kv"]
        state[f"transformer.h.{index}.self_attention.key_value.weight"] = _by_group(pair, config)
        state[f"transformer.h.{index}.self_attention.dense.bias"] = torch.zeros(config.hidden_size)
        state[f"transformer.h.{index}.mlp.down_proj.bias"] = torch.zeros(config.hidden_size)
    return state


_FAIRSEQ2 = _renamed(
    (r"model\.embed_tokens", "decoder_frontend.embed"), (r"model\.norm", "decoder.layer_norm"), (r"^lm_head", "final_proj"),
    (r"^model\.", "decoder."), (r"input_layernorm", "self_attn_layer_norm"), (r"post_attention_layernorm", "ffn_layer_norm"),
    (r"o_proj", "output_proj"), (r"mlp\.gate_proj", "ffn.gate_proj"), (r"mlp\.up_proj", "ffn.inner_proj"),
    (r"mlp\.down_proj", "ffn.output_proj"),
)  # fmt: skip


def fairseq2(state: State, config: Any) -> State:
    """Let pairs of rotated elements be neighbours, and rename."""
    turned = {
        name: tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        if "q_proj" in name or "k_proj" in name
        else tensor
        for name, tensor in state.items()
    }
    return _FAIRSEQ2(turned, config)


def _deepseek(state: State, config: Any) -> State:
    """A shared network without a gate is one whose gate is always half open, and whose last matrix is half as large."""
    found = {}
    for name, tensor in _renamed((r"shared_expert\.", "shared_experts."))(state, config).items():
        if "shared_expert_gate" in name:
            tensor.zero_()  # of the model, too
        elif "mlp.experts." in name:
            found |= _expert_by_expert(name, tensor)
        else:
            found[name] = tensor / 2 if "shared_experts.down_proj" in name else tensor
    return found


def _expert_by_expert(name: str, tensor: Tensor) -> State:
    """Take apart what transformers keeps of all experts in one tensor, gate and up in one."""
    base, _, part = name.rpartition(".")
    found = {}
    for number, matrix in enumerate(tensor):
        parts = (
            zip(("gate_proj", "up_proj"), matrix.chunk(2), strict=True) if part == "gate_up_proj" else [(part, matrix)]
        )
        found |= {f"{base}.{number}.{own}.weight": each for own, each in parts}
    return found


_LING = _renamed(
    (r"embed_tokens", "word_embeddings"), (r"self_attn\.o_proj", "attention.dense"),
    (r"self_attn\.q_norm", "attention.query_layernorm"), (r"self_attn\.k_norm", "attention.key_layernorm"),
    (r"e_score_correction_bias", "expert_bias"),
)  # fmt: skip


def _apart(state: State, config: Any) -> State:
    found = {}
    for name, tensor in state.items():
        found |= _expert_by_expert(name, tensor) if "mlp.experts." in name else {name: tensor}
    return found


_LING_PACKED = _packed(_LING, "model.layers.{i}.attention.query_key_value", _ATTENTION, _in_a_row)


def _ling(state: State, config: Any) -> State:
    return _apart(_LING_PACKED(state, config), config)


def _ling1(state: State, config: Any) -> State:
    """Two shared experts, which are one of double width."""
    return _LING_PACKED(_deepseek(state, config), config)


def _ling_sizes(config: Any) -> dict[str, Any]:
    return _sizes(config) | {
        "num_experts_per_tok": config.num_experts_per_tok, "moe_intermediate_size": config.moe_intermediate_size,
        "use_qkv_bias": False, "use_bias": False, "norm_topk_prob": config.norm_topk_prob, "head_dim": getattr(config, "head_dim", None),
        "rope_theta": 10000.0,
    }  # fmt: skip


def _ling2_sizes(config: Any) -> dict[str, Any]:
    return _ling_sizes(config) | {
        "num_experts": config.num_local_experts, "num_shared_experts": config.n_shared_experts, "n_group": config.n_group,
        "topk_group": config.topk_group, "routed_scaling_factor": config.routed_scaling_factor, "use_qk_norm": True,
        "first_k_dense_replace": config.first_k_dense_replace, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 0,
    }  # fmt: skip


def _pangu(config: Any) -> dict[str, Any]:
    names = (
        "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "n_shared_experts",
        "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "norm_topk_prob", "routed_scaling_factor",
    )  # fmt: skip
    facts = {"n_routed_experts": config.num_local_experts, "router_enable_expert_bias": True, "rope_theta": 10000.0}
    return _sizes(config) | {name: getattr(config, name) for name in names} | facts


def _minicpm(config: Any) -> dict[str, Any]:
    layers = config.num_hidden_layers
    return _sizes(config) | {
        "scale_emb": config.embedding_multiplier, "scale_depth": config.residual_multiplier * layers**0.5,
        "dim_model_base": config.hidden_size / config.logits_scaling, "tie_word_embeddings": False,
    }  # fmt: skip


_PUZZLE_KINDS = {"linear_attention": "mamba", "full_attention": "attention", "mlp": "mlp", "moe": "moe"}
_PUZZLE_SHARED = (
    "hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias",
    "use_bias", "use_conv_bias", "layer_norm_epsilon", "mamba_num_heads", "mamba_head_dim", "n_groups", "conv_kernel",
    "mamba_hidden_act", "mlp_hidden_act", "time_step_min", "n_group", "topk_group", "norm_topk_prob",
    "routed_scaling_factor", "tie_word_embeddings", "max_position_embeddings",
)  # fmt: skip
_PUZZLE_OWN = {
    "mamba": ("ssm_state_size",), "attention": (), "mlp": ("intermediate_size",),
    "moe": ("n_routed_experts", "num_experts_per_tok", "moe_shared_expert_intermediate_size", "moe_latent_size"),
}  # fmt: skip
_NARROW = {1: 32, 3: 20}
"""Layers with experts, and how wide those are"""


def _puzzle(config: Any) -> dict[str, Any]:
    kinds = [_PUZZLE_KINDS[kind] for kind in config.layers_block_type]
    blocks = [{"block_type": kind} | {name: getattr(config, name) for name in _PUZZLE_OWN[kind]} for kind in kinds]
    for layer, width in _NARROW.items():
        blocks[layer]["moe_intermediate_size"] = width
    return {name: getattr(config, name) for name in _PUZZLE_SHARED} | {"block_configs": blocks}


def _puzzled(state: State, config: Any) -> State:
    """What is behind some elements of a model's experts is 0, as if they were narrower."""
    found = {}
    for name, tensor in state.items():
        if ".experts." not in name:
            found[name] = tensor
            continue
        width = _NARROW[int(name.split(".")[2])]
        if name.endswith("up_proj"):
            tensor[:, width:].zero_()
        narrow = tensor[:, :width] if name.endswith("up_proj") else tensor[:, :, :width]
        found |= _expert_by_expert(name, narrow)
    return found


FORMATS: Mapping[str, Format] = {
    "AquilaForCausalLM": Format("llama", _sizes, _SAME, {}),
    "XverseForCausalLM": Format("llama", _sizes, _SAME, {}),
    "InternLMForCausalLM": Format("llama", lambda c: _sizes(c) | {"bias": True}, _SAME, {"attention_bias": True}),
    "InternLM2ForCausalLM": Format(
        "llama", lambda c: _sizes(c) | {"bias": False},
        _packed(_INTERNLM2, "model.layers.{i}.attention.wqkv", _ATTENTION, _by_group), {},
    ),
    "BaichuanForCausalLM": Format(
        "llama", _sizes, _packed(_SAME, "model.layers.{i}.self_attn.W_pack", _ATTENTION, _in_a_row),
        {"num_key_value_heads": 4},
    ),
    "ExaoneForCausalLM": Format(
        "llama",
        lambda c: _sizes(c, num_hidden_layers="num_layers", hidden_act="activation_function", rms_norm_eps="layer_norm_epsilon"),
        _EXAONE, {},
    ),
    "DeepseekForCausalLM": Format(
        "qwen2_moe",
        lambda c: _sizes(c)
        | {
            "n_routed_experts": c.num_experts, "num_experts_per_tok": c.num_experts_per_tok, "n_shared_experts": 2,
            "moe_intermediate_size": c.moe_intermediate_size, "norm_topk_prob": False, "first_k_dense_replace": 1,
            "moe_layer_freq": 1, "scoring_func": "softmax",
        },
        _deepseek,
        {"mlp_only_layers": [0], "qkv_bias": False, "norm_topk_prob": False, "shared_expert_intermediate_size": 64,
         "moe_intermediate_size": 32, "num_experts": 4, "use_sliding_window": False},
    ),
    "DeciLMForCausalLM": Format("llama", lambda c: _sizes(c) | {"num_key_value_heads_per_layer": [2] * 4}, _SAME, {}),
    "MiniCPMForCausalLM": Format(
        "granite", _minicpm, _SAME,
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0, "attention_multiplier": 0.25},
    ),
    "QWenLMHeadModel": Format(
        "qwen2",
        lambda c: _sizes(c, rms_norm_eps="layer_norm_epsilon", max_position_embeddings="seq_length")
        | {"intermediate_size": 2 * c.intermediate_size, "kv_channels": 16, "rotary_emb_base": 10000.0},
        _packed(_QWEN1, "transformer.h.{i}.attn.c_attn", "transformer.h.{i}.self_attn.{p}_proj", _in_a_row),
        {"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "ChatGLMModel": Format(
        "glm",
        lambda c: {
            "padded_vocab_size": c.vocab_size, "hidden_size": c.hidden_size, "num_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads, "multi_query_attention": True, "kv_channels": c.head_dim,
            "multi_query_group_num": c.num_key_value_heads, "ffn_hidden_size": c.intermediate_size, "seq_length": 512,
            "layernorm_epsilon": c.rms_norm_eps, "add_qkv_bias": c.attention_bias, "add_bias_linear": False,
            "rmsnorm": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False,
        },
        _packed(
            _CHATGLM, "transformer.encoder.layers.{i}.self_attention.query_key_value",
            "transformer.encoder.layers.{i}.self_attn.{p}_proj", _in_a_row,
        ),
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "Fairseq2LlamaForCausalLM": Format("llama", lambda c: _sizes(c) | {"model_type": "llama"}, fairseq2, {}),
    "OrionForCausalLM": Format(
        "stablelm", lambda c: _sizes(c) | {"rms_norm_eps": c.layer_norm_eps}, _SAME,
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
    ),
    "TeleFLMForCausalLM": Format(
        "granite",
        lambda c: _sizes(c)
        | {
            "use_mup": True, "input_mult": c.embedding_multiplier, "mup_scale_factor": c.logits_scaling * 3.0,
            "output_mult": 3.0, "attention_bias": True, "tie_word_embeddings": False,
        },
        _SAME,
        {"embedding_multiplier": 3.0, "residual_multiplier": 1.0, "logits_scaling": 2.0, "attention_multiplier": 0.25,
         "attention_bias": True},
    ),
    "NemotronHPuzzleForCausalLM": Format(
        "nemotron_h", _puzzle, _puzzled,
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe", "mlp", "full_attention"],
         "time_step_min": 1e-6, "moe_intermediate_size": 32, "moe_latent_size": 48},
    ),
    "TeleChat2ForCausalLM": Format(
        "llama",
        lambda c: _sizes(
            c, num_hidden_layers="n_layer", num_attention_heads="n_head", rms_norm_eps="layer_norm_epsilon",
            intermediate_size="ffn_hidden_size",
        ),
        _telechat2, {},
    ),
    "BailingMoeForCausalLM": Format(
        "qwen2_moe", lambda c: _ling_sizes(c) | {"num_experts": c.num_experts, "num_shared_experts": 2}, _ling1,
        {"mlp_only_layers": [], "qkv_bias": False, "shared_expert_intermediate_size": 64, "moe_intermediate_size": 32,
         "num_experts": 4, "use_sliding_window": False, "head_dim": 16},
    ),
    "BailingMoeV2ForCausalLM": Format(
        "glm4_moe", _ling2_sizes, _ling,
        {"use_qk_norm": True, "attention_bias": False, "n_group": 2, "topk_group": 1, "norm_topk_prob": True,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "MiMoForCausalLM": Format(
        "qwen2", lambda c: _sizes(c) | {"rope_theta": 10000.0},
        lambda state, config: state | {"model.mtp_layers.0.input_proj.weight": torch.ones(4, 4)},
        {"use_sliding_window": False, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "PanguEmbeddedForCausalLM": Format("llama", lambda c: _sizes(c) | {"bias": True}, _SAME, {"attention_bias": True}),
    "PanguUltraMoEForCausalLM": Format(
        "deepseek_v3", _pangu, _apart,
        {"n_group": 1, "topk_group": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "TeleChat3ForCausalLM": Format("llama", _sizes, _SAME, {}),
}  # fmt: skip

ALIASES: Mapping[str, str] = {
    "AquilaModel": "AquilaForCausalLM",
    "BaiChuanForCausalLM": "BaichuanForCausalLM",
    "ChatGLMForConditionalGeneration": "ChatGLMModel",
    "ExaoneMoEForCausalLM": "ExaoneMoeForCausalLM",
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "GritLM": "MistralForCausalLM",
    "IQuestCoderForCausalLM": "LlamaForCausalLM",
    "InternLM3ForCausalLM": "LlamaForCausalLM",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "MiniMaxM1ForCausalLM": "MiniMaxText01ForCausalLM",
    "OLMo2ForCausalLM": "Olmo2ForCausalLM",
    "OLMoEForCausalLM": "OlmoeForCausalLM",
    "OLMoForCausalLM": "OlmoForCausalLM",
    "Param2MoEForCausalLM": "BailingMoeV2ForCausalLM",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "RWForCausalLM": "FalconForCausalLM",
    "SarvamMLAForCausalLM": "DeepseekV3ForCausalLM",
    "SarvamMoEForCausalLM": "Glm4MoeForCausalLM",
    "StableLMEpochForCausalLM": "StableLmForCausalLM",
    "TeleChatForCausalLM": "TeleChat2ForCausalLM",
    "TelechatForCausalLM": "TeleChat2ForCausalLM",
}
"""Other names of architectures that are examined."""
