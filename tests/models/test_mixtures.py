"""One row per mixture of experts and hybrid, with what its plainest configuration leaves out: factors other than 1, several
groups, biases.  A tiny checkpoint gives transformers' logits, and the very same bits however it is cut into steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance.tiny import VOCAB, save_tiny
from vllm.errors import ModelError
from vllm.layers.transformer import Transformer
from vllm.models.registry import spec_of

LENGTH = 45
FACTORS = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.11}
GROUPS = {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.7}
WINDOWS = ["sliding_attention", "full_attention"] * 2
ROPES = {
    "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
WIDE = {"global_head_dim": 32, "num_kv_shared_layers": 0, "num_hidden_layers": 2, "layer_types": WINDOWS[:2]}
ALPHA = {"rope_type": "dynamic", "rope_theta": 10000.0, "alpha": 50.0, "factor": 1.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 150000.0, "factor": 4.0, "original_max_position_embeddings": 16, "truncate": False,
}  # fmt: skip
CHUNKS = {"attention_chunk_size": 32, "no_rope_layers": [1, 0, 1, 1], "num_experts_per_tok": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "glm4_moe": ("glm4_moe", {**GROUPS, "use_qk_norm": True, "attention_bias": True, "norm_topk_prob": False}),
    "glm4_moe_lite": ("glm4_moe_lite", {**GROUPS, "attention_bias": True}),
    "dots1": ("dots1", {"attention_bias": True, "layer_types": ["sliding_attention", "full_attention"] * 2}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_layer_interval": 2, "moe_num_shared_experts": 2}),
    "minimax_m2": ("minimax_m2", {"rotary_dim": 8, "head_dim": 16}),
    "afmoe": ("afmoe", {"mup_enabled": True, "route_scale": 1.7, "attention_bias": True, "layer_types": WINDOWS}),
    "dbrx": ("dbrx", {}),
    "exaone_moe": ("exaone_moe", {**GROUPS, "norm_topk_prob": False, "layer_types": WINDOWS}),
    "flex_olmo": ("flex_olmo", {"norm_topk_prob": True, "attention_bias": True}),
    "granite_swa": ("granite_swa", {**FACTORS, "layer_rope_theta": [0, 100.0, 5000.0, 0]}),
    "granitemoe_swa": ("granitemoe_swa", {**FACTORS, "layer_rope_theta": [100.0, 0, 0, 5000.0]}),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 0.3, "attention_multiplier": 0.2, "embedding_multiplier": 3.0}),
    "hyperclovax, plain": ("hyperclovax", {**FACTORS, "use_post_norm": False}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"rope_parameters": ALPHA, "attention_bias": True}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {"attention_bias": True}),
    "lfm2_moe": ("lfm2_moe", {"routed_scaling_factor": 1.7, "norm_topk_prob": False, "use_expert_bias": False}),
    "longcat_flash": (
        "longcat_flash",
        {"zero_expert_num": 2, "moe_topk": 3, "num_layers": 3, "routed_scaling_factor": 1.5},
    ),
    "longcat_flash, real experts alone": ("longcat_flash", {"zero_expert_num": 0}),
    "mellum": (
        "mellum",
        {"layer_types": WINDOWS, "mlp_layer_types": ["dense", "sparse"] * 2, "rope_parameters": ROPES},
    ),
    "minicpm3": ("minicpm3", {"scale_emb": 3.0, "scale_depth": 0.7, "dim_model_base": 16}),
    "ministral3": ("ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.4}}),
    "olmo, clipped": ("olmo", {"clip_qkv": 0.8}),
    "phimoe": ("phimoe", {"router_jitter_noise": 0.3, "lm_head_bias": True, "attention_bias": True}),
    "sarvam_moe": ("sarvam_moe", {**GROUPS, "use_qk_norm": True}),
    "solar_open": ("solar_open", {**GROUPS, "attention_bias": True}),
    "youtu": ("youtu", {"attention_bias": True}),
    "gemma3n": ("gemma3n_text", {"activation_sparsity_pattern": [0.7, 0.0, 0.9, 0.0, 0.5, 0.0], "altup_num_inputs": 3}),
    "gemma3n, active": (
        "gemma3n_text",
        {
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "attention_bias": True,
            "vocab_size_per_layer_input": 200,
        },
    ),
    "gemma4": ("gemma4_text", {"final_logit_softcapping": 30.0, "attention_bias": True, "use_double_wide_mlp": True}),
    "gemma4, keys as values": ("gemma4_text", {"attention_k_eq_v": True, "num_global_key_value_heads": 1, **WIDE}),
    "gemma4, experts": ("gemma4_text", {"enable_moe_block": True, "hidden_size_per_layer_input": 0, **WIDE}),
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 0.5, "rope_parameters": YARN, "num_experts_per_tok": 3}),
    "llama4": (
        "llama4_text",
        {**CHUNKS, "moe_layers": [1, 2], "use_qk_norm": True, "floor_scale": 4, "attn_scale": 0.5},
    ),
    "llama4, no tempering": ("llama4_text", {**CHUNKS, "attn_temperature_tuning": False, "use_qk_norm": False}),
    "granitemoe": ("granitemoe", {**FACTORS, "attention_bias": True}),
    "granitemoeshared": ("granitemoeshared", FACTORS),
    "granitemoehybrid": ("granitemoehybrid", {**FACTORS, "mamba_n_groups": 2, "mamba_proj_bias": True}),
    "granitemoehybrid, no experts": ("granitemoehybrid", {"num_local_experts": 0, "position_embedding_type": "rope"}),
    "jamba": ("jamba", {"mamba_proj_bias": True, "mamba_conv_bias": False}),
    "bamba": ("bamba", {"mamba_n_groups": 2, "mamba_proj_bias": True, "mlp_bias": True, "attention_bias": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers_in_any_steps(
    name: str, load: Callable[..., Transformer], compute: Callable[..., list[Tensor]], tmp_path: Path
) -> None:
    model_type, changes = CASES[name]
    model = save_tiny(model_type, tmp_path, changes)
    decoder = load(tmp_path, LENGTH)
    prompt, *others = (torch.randint(3, VOCAB, (length,)) for length in (LENGTH, 23, 1))
    alone = compute(decoder, [prompt])[0]
    expected = model(prompt[None], use_cache=False).logits[0]
    assert (alone - expected).abs().max() < 1e-4 * expected.abs().max()
    for chunk in (1, 7, 16):
        assert torch.equal(compute(decoder, [*others, prompt], chunk)[-1], alone), f"chunks of {chunk}"


def test_kimi_k2_is_read_as_what_it_is(
    load: Callable[..., Transformer], compute: Callable[..., list[Tensor]], tmp_path: Path
) -> None:
    """Its config.json refers to code beside it, which is deepseek 3's."""
    model = save_tiny("deepseek_v3", tmp_path)
    file = tmp_path / "config.json"
    code = {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "kimi_k2", "auto_map": code}))
    prompt = torch.randint(3, VOCAB, (LENGTH,))
    expected = model(prompt[None], use_cache=False).logits[0]
    assert (compute(load(tmp_path, LENGTH), [prompt])[0] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_experts_with_biases_are_refused(tmp_path: Path) -> None:
    config = save_tiny("ernie4_5_moe", tmp_path, {"use_bias": True}).config
    with pytest.raises(ModelError, match="use_bias"):
        spec_of(config)
