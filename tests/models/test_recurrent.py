"""One row per recurrent architecture and variant: a tiny checkpoint gives transformers' logits, and the very same bits
however the prompt is cut into steps and whatever runs beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conformance.tiny import VOCAB, save_tiny
from vllm import ops
from vllm.errors import ConfigError, ModelError
from vllm.layers.placement import Placement
from vllm.layers.transformer import Transformer
from vllm.models.registry import build, spec_of
from vllm.ops.parallel import Group
from vllm.ops.states import StateMemory
from vllm.ops.triton import recurrent as triton_recurrent
from vllm.ops.triton.delta import gated_delta
from vllm.ops.triton.states import TritonStatePlan

LENGTH = 45
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("mamba", {}),
    "mamba, biases": ("mamba", {"use_bias": True, "use_conv_bias": False}),
    "mamba, odd sizes, untied": ("mamba", {"state_size": 5, "conv_kernel": 3, "tie_word_embeddings": False}),
    "falcon_mamba": ("falcon_mamba", {}),
    "mamba2": ("mamba2", {}),
    "mamba2, groups": ("mamba2", {"n_groups": 4, "num_heads": 8}),
    "mamba2, biases, odd sizes, tied": (
        "mamba2",
        {"use_bias": True, "use_conv_bias": False, "state_size": 7, "conv_kernel": 2, "tie_word_embeddings": True},
    ),
    "lfm2": ("lfm2", {}),
    "lfm2, biases, width as it is": ("lfm2", {"conv_bias": True, "block_auto_adjust_ff_dim": False, "conv_L_cache": 4}),
    "lfm2_moe": ("lfm2_moe", {"routed_scaling_factor": 1.5}),
    "lfm2_moe, uncorrected": ("lfm2_moe", {"use_expert_bias": False, "norm_topk_prob": False}),
    "qwen3_next": ("qwen3_next", {}),
    "qwen3_next, dense layers, biases": (
        "qwen3_next",
        {"mlp_only_layers": [1], "attention_bias": True, "linear_num_key_heads": 4, "linear_key_head_dim": 12},
    ),
    "qwen3_5": ("qwen3_5_text", {}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {}),
    "mamba2, limited": ("mamba2", {"time_step_limit": (0.01, 0.05)}),
    "falcon_h1": ("falcon_h1", {}),
    "falcon_h1, multipliers": (
        "falcon_h1",
        {
            "embedding_multiplier": 1.5, "lm_head_multiplier": 0.7, "mlp_multipliers": [1.4, 0.6], "key_multiplier": 0.8,
            "attention_in_multiplier": 1.2, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.3,
            "ssm_out_multiplier": 0.6, "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7], "attention_bias": True,
            "mamba_proj_bias": True, "projectors_bias": True, "mlp_bias": True,
        },
    ),
    "falcon_h1, norm": ("falcon_h1", {"mamba_rms_norm": True, "mamba_n_groups": 2}),
    "falcon_h1, norm behind the gate": (
        "falcon_h1",
        {"mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_conv_bias": False},
    ),
    "nemotron_h": ("nemotron_h", {}),
    "nemotron_h, narrow experts in groups, limits": (
        "nemotron_h",
        {
            "moe_latent_size": 24, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "norm_topk_prob": False,
            "routed_scaling_factor": 1.7, "n_groups": 2, "time_step_min": 0.01,
        },
    ),
    "olmo_hybrid": ("olmo_hybrid", {}),
    "olmo_hybrid, no positions, values of two heads": (
        "olmo_hybrid",
        {
            "rope_parameters": None, "linear_allow_neg_eigval": False, "linear_num_key_heads": 2, "linear_key_head_dim": 32,
            "linear_num_value_heads": 4, "linear_value_head_dim": 16, "attention_bias": True,
        },
    ),
    "kimi_linear": ("kimi_linear", {}),
    "kimi_linear, queries at once, experts in groups": (
        "kimi_linear",
        {"q_lora_rank": None, "num_local_experts": 8, "n_group": 4, "topk_group": 2, "linear_num_heads": 2},
    ),
    "minimax": ("minimax", {}),
    "minimax, weighted sums": (
        "minimax",
        {
            "full_attn_alpha_factor": 1.5, "full_attn_beta_factor": 0.8, "linear_attn_alpha_factor": 2.5,
            "linear_attn_beta_factor": 1.2, "mlp_alpha_factor": 1.7, "mlp_beta_factor": 0.6, "sliding_window": None,
        },
    ),
    "recurrent_gemma": ("recurrent_gemma", {}),
    "recurrent_gemma, odd sizes": ("recurrent_gemma", {"hidden_size": 72, "lru_width": 56, "attention_bias": True}),
    "zamba2": ("zamba2", {}),
    "zamba2, adapters, biases": (
        "zamba2",
        {
            "layers_block_type": ["linear_attention", "hybrid", "hybrid", "linear_attention", "hybrid"],
            "num_hidden_layers": 5, "num_mem_blocks": 2, "use_shared_attention_adapter": True, "adapter_rank": 8,
            "use_mem_rope": True, "num_key_value_heads": 4, "add_bias_linear": True, "mamba_ngroups": 2, "n_mamba_heads": 8, "time_step_min": 0.01,
        },
    ),
}  # fmt: skip
Compute = Callable[..., list[Tensor]]
Load = Callable[..., Transformer]


def prompts(*lengths: int) -> list[Tensor]:
    return [torch.randint(3, VOCAB, (length,)) for length in lengths]


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, load: Load, compute: Compute, tmp_path: Path) -> None:
    model_type, changes = CASES[name]
    model = save_tiny(model_type, tmp_path, changes)
    decoder = load(tmp_path, LENGTH)
    asked = prompts(LENGTH, 1, 17)
    for prompt, logits in zip(asked, compute(decoder, asked), strict=True):
        expected = model(prompt[None], use_cache=False).logits[0]
        tolerance = (
            3e-4 if name.startswith(("qwen3", "zamba2")) else 1e-4
        )  # transformers' own two ways differ by 1.4e-4 there
        assert (logits - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "mamba",
        "falcon_mamba",
        "mamba2, groups",
        "lfm2",
        "qwen3_5",
        "falcon_h1",
        "zamba2",
        "kimi_linear",
        "recurrent_gemma",
        "minimax",
    ],
)
def test_any_steps_give_the_same_bits(
    name: str, dtype: torch.dtype, load: Load, compute: Compute, tmp_path: Path
) -> None:
    model_type, changes = CASES[name]
    model = save_tiny(model_type, tmp_path, changes)
    decoder = load(tmp_path, LENGTH, dtype=dtype)
    prompt, *others = prompts(LENGTH, 23, 45, 1)
    alone = compute(decoder, [prompt])[0]
    expected = model.to(dtype)(prompt[None], use_cache=False).logits[0].float()
    assert (alone - expected).abs().mean() < (0.03 if dtype == torch.bfloat16 else 1e-4) * expected.abs().max()
    for chunk in (1, 7, 16, 19):
        assert torch.equal(compute(decoder, [*others, prompt], chunk)[-1], alone), f"chunks of {chunk}"


@pytest.mark.parametrize(
    "name", ["mamba", "mamba2, groups", "qwen3_next", "kimi_linear", "minimax", "recurrent_gemma", "lfm2"]
)
def test_kernels_for_a_gpu_take_what_layers_hand_over(
    name: str, load: Load, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(CASES[name][0], tmp_path, CASES[name][1])
    decoder, asked = load(tmp_path, LENGTH), prompts(9, 1, 4)
    expected = compute(decoder, asked)
    for kernel in ("causal_conv", "selective_scan", "rg_lru", "gate"):
        monkeypatch.setattr(ops, kernel, getattr(triton_recurrent, kernel))
    monkeypatch.setattr(ops, "gated_delta", gated_delta)
    monkeypatch.setattr(
        StateMemory, "plan", lambda memory, rows, _, blocks: TritonStatePlan(memory.device, rows, blocks)
    )
    for chunk in (None, 4, 1):
        for ours, theirs in zip(compute(decoder, asked, chunk), expected, strict=True):
            assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max(), f"chunks of {chunk}"


def test_what_is_not_supported_is_refused(tmp_path: Path) -> None:
    config = save_tiny("falcon_h1", tmp_path, {"mamba_proj_bias": True}).config
    with pytest.raises(ModelError, match="mamba_proj_bias=True"):
        spec_of(config)
    config = save_tiny("nemotron_h", tmp_path, {"mlp_bias": True}).config
    with pytest.raises(ModelError, match="experts with biases"):
        spec_of(config)
    config = save_tiny("mamba", tmp_path).config
    with pytest.raises(ConfigError, match="tensor_parallel_size=1"):
        build(config, Placement(torch.float32, torch.device("cpu"), group=Group(0, 2)), LENGTH)
