"""One row per mixture of experts and hybrid, with what its plainest configuration leaves out: factors other than 1, several
groups, biases.  A tiny checkpoint gives transformers' logits, and the very same bits however it is cut into steps."""

from __future__ import annotations

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


def test_experts_with_biases_are_refused(tmp_path: Path) -> None:
    config = save_tiny("ernie4_5_moe", tmp_path, {"use_bias": True}).config
    with pytest.raises(ModelError, match="use_bias"):
        spec_of(config)
