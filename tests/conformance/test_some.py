"""A few architectures of each kind; `make conformance` examines all."""

from __future__ import annotations

import pytest

from tests.conformance.suite import WAYS, examine

FAMILIES = (
    "cohere2",
    "falcon",
    "falcon_h1",
    "glm4",
    "gemma3n_text",
    "gemma4_text",
    "gpt_oss",
    "llama4_text",
    "granite",
    "lfm2",
    "mamba",
    "nemotron_h",
    "olmo2",
    "qwen2_moe",
    "qwen3_next",
    "starcoder2",
    "InternLM2ForCausalLM",
    "ChatGLMModel",
    "zamba2",
    "ArcticForCausalLM",
    "DeepseekForCausalLM",
    "JAISLMHeadModel",
    "Phi3SmallForCausalLM",
    "Plamo2ForCausalLM",
    "SolarForCausalLM",
    "IQuestLoopCoderForCausalLM",
    "K2HorizonForCausalLM",
    "MotifForCausalLM",
    "NanbeigeForCausalLM",
    "OuroForCausalLM",
    "Plamo3ForCausalLM",
    "Rnj1ForCausalLM",
    "Step1ForCausalLM",
    "Step3TextForCausalLM",
    "Step3p5ForCausalLM",
    "TeleFLMForCausalLM",
)
FOREIGN = {"jamba": "transformers", "mamba2": "transformers", "deepseek_v3": "packed", "gemma3n_text": "packed"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_computes_as_transformers_does(model_type: str) -> None:
    outcome = examine(model_type)
    assert outcome.ways == dict.fromkeys(WAYS, True), outcome
    assert outcome.route == "family" and outcome.worst < 1e-4


@pytest.mark.parametrize("model_type", FOREIGN)
def test_a_foreign_module_is_used_as_transformers_does(model_type: str) -> None:
    outcome = examine(model_type, "transformers")
    assert outcome.ways == dict.fromkeys(WAYS, True), outcome
    assert outcome.route == FOREIGN[model_type] and outcome.worst < 1e-4
