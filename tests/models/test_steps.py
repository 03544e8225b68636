"""Step, plamo 3, K2 Horizon, rnj 1, motif: what the conformance suite does not ask of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conformance import published
from tests.conformance.published_kin import HORIZON, KIN, PLAMO3, RNJ1
from tests.conformance.published_motif import MOTIF, MOTIFS
from tests.conformance.published_steps import STEP3P5, STEPS
from vllm.errors import ModelError
from vllm.layers.transformer import Transformer
from vllm.models.families.era_gemma import rnj1
from vllm.models.families.era_horizon import k2_horizon
from vllm.models.families.era_motif import motif
from vllm.models.families.era_plamo import plamo3
from vllm.models.families.era_steps import step3p5

Load = Callable[..., Transformer]
Compute = Callable[..., list[Tensor]]


@pytest.mark.parametrize("architecture", [*KIN, *MOTIFS, *STEPS, "IQuestLoopCoderForCausalLM"])
def test_the_bits_are_the_same_in_any_steps(architecture: str, load: Load, compute: Compute, tmp_path: Path) -> None:
    published.save(architecture, tmp_path)
    prompt, other = torch.randint(3, published.VOCAB, (37,)), torch.randint(3, published.VOCAB, (23,))
    for dtype in (torch.float32, torch.bfloat16):
        model = load(tmp_path, dtype=dtype)
        alone = compute(model, [prompt])[0]
        for chunk in (1, 7, 16):
            assert torch.equal(compute(model, [other, prompt], chunk)[1], alone), f"chunks of {chunk}"


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("K2HorizonForCausalLM", {"layernorm_num_groups": 1, "rope_head_dim": 16}),
        ("K2HorizonForCausalLM", {"rope_head_dim": 4, "attention_gate_func": "silu"}),
        ("Plamo3ForCausalLM", {"window_size": None, "sliding_window": [6, 6, None, 6]}),
        ("Plamo3ForCausalLM", {"sliding_window_pattern": 2}),
        ("Rnj1ForCausalLM", {"model_type": "gemma3_text"}),
    ],
    ids=str,
)
def test_other_sizes(architecture: str, changes: Any, load: Load, compute: Compute, tmp_path: Path) -> None:
    written = published.save(architecture, tmp_path, **changes)
    config = {**written.config, "window_size": 6} if architecture.startswith("Plamo3") else written.config
    prompt = torch.randint(3, published.VOCAB, (29,))
    found, expected = compute(load(tmp_path), [prompt])[0], written.compute(config, written.weights, prompt)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_horizon_without_gates_and_experts_for_values(load: Load, compute: Compute, tmp_path: Path) -> None:
    changes = {"attention_gate_func": None, "mova_num_experts": 0, "query_key_norm": False}
    written = published.save("K2HorizonForCausalLM", tmp_path, **changes)
    weights = {}
    for name, tensor in written.weights.items():
        if "v_experts.0." in name:
            weights[name.replace("v_experts.0", "v_proj")] = tensor
        elif not any(part in name for part in ("self_attn.gate", "v_router", "v_experts", "q_norm", "k_norm")):
            weights[name] = tensor
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    prompt = torch.randint(3, published.VOCAB, (29,))
    found, expected = compute(load(tmp_path), [prompt])[0], written.compute(written.config, weights, prompt)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_stretched_plamo3_stretches_full_attention_alone() -> None:
    spec = plamo3(SimpleNamespace(**{**PLAMO3, "rope_scaling_factor": 4, "initial_context_length": 64}))
    local, full = (spec.layers[index].attention.rope for index in (0, 2))
    assert local is not None and full is not None
    assert type(local.stretch).__name__ == "Unstretched" and type(full.stretch).__name__ == "Yarn"


def test_step_3_5_is_what_transformers_computes_for_the_text_of_3_7(tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

    written = published.save("Step3p5ForCausalLM", tmp_path)
    theirs = Step3p7TextModel(CONFIG_MAPPING["step3p5"].from_dict({**STEP3P5, "pad_token_id": 1})).eval()
    stored = {name.removeprefix("model."): tensor for name, tensor in written.weights.items()}
    for layer in range(1, len(theirs.layers)):
        name = f"layers.{layer}."
        halves = [stored.pop(f"{name}moe.{part}_proj.weight") for part in ("gate", "up")]
        stored[f"{name}mlp.experts.gate_up_proj"] = torch.cat(halves, 1)
        stored[f"{name}mlp.experts.down_proj"] = stored.pop(f"{name}moe.down_proj.weight")
        stored[f"{name}mlp.gate.weight"] = stored.pop(f"{name}moe.gate.weight")
        stored[f"{name}mlp.gate.e_score_correction_bias"] = stored.pop(f"{name}moe.router_bias")
        for part in ("gate", "up", "down"):
            stored[f"{name}mlp.shared_experts.{part}_proj.weight"] = stored.pop(
                f"{name}share_expert.{part}_proj.weight"
            )
    head = stored.pop("lm_head.weight")
    assert theirs.load_state_dict(stored, strict=False).missing_keys == []
    prompt = torch.randint(3, published.VOCAB, (23,))
    expected = theirs(prompt[None]).last_hidden_state[0] @ head.T
    torch.testing.assert_close(written.compute(written.config, written.weights, prompt), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "config", "changes", "message"),
    [
        (motif, MOTIF, {"num_noise_heads": 8}, "num_noise_heads=8: a motif with it"),
        (motif, MOTIF, {"hidden_act": "silu"}, "hidden_act='silu': of motif"),
        (motif, MOTIF, {"num_key_value_heads": 1}, "num_key_value_heads=1: motif's heads are pairs"),
        (rnj1, RNJ1, {"layer_types": ["sliding_attention"] * 4}, "layer_types has 'sliding_attention': of rnj 1"),
        (plamo3, PLAMO3, {"scale_embedding": True}, "scale_embedding=True: a plamo 3 with"),
        (
            plamo3,
            PLAMO3,
            {"sliding_window": [4, 8, None, 4]},
            r"sliding_window=\[4, 8, None, 4\]: .* windows of one size",
        ),
        (k2_horizon, HORIZON, {"attention_gate_func": "relu"}, "attention_gate_func='relu' .* silu or softplus"),
        (
            k2_horizon,
            HORIZON,
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
            "'linear' with rope_head_dim=8",
        ),
    ],
)
def test_variants_that_are_not_built_are_refused(family: Any, config: Any, changes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        family(SimpleNamespace(**{**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_head_wise_attn_gate": False}, "use_head_wise_attn_gate=False: .* with True"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation='softmax': .* with 'sigmoid'"),
        ({"use_rope_layers": [1, 1, 0, 1]}, "use_rope_layers: .* that know no positions"),
    ],
)
def test_other_steps_3_5_are_refused(changes: Any, message: str) -> None:
    from transformers import CONFIG_MAPPING

    with pytest.raises(ModelError, match=message):
        step3p5(CONFIG_MAPPING["step3p5"].from_dict({**STEP3P5, **changes}))
