"""Architectures by the names that a checkpoint's config.json gives them.

Knowing names needs no torch; what an architecture is made of is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.errors import ModelError, did_you_mean

if TYPE_CHECKING:
    from vllm.layers.placement import Placement
    from vllm.layers.transformer import Transformer
    from vllm.models.spec import TransformerSpec

ARCHITECTURES: Mapping[str, str] = {
    "GPT2LMHeadModel": "gpt:gpt2",
    "GPTNeoXForCausalLM": "gpt:gpt_neox",
    "Gemma2ForCausalLM": "gemma:gemma2",
    "Gemma3ForCausalLM": "gemma:gemma3",
    "Gemma3ForConditionalGeneration": "gemma:gemma3_multimodal",
    "GemmaForCausalLM": "gemma:gemma",
    "LlamaForCausalLM": "llama:llama",
    "MistralForCausalLM": "llama:mistral",
    "MixtralForCausalLM": "moe:mixtral",
    "OPTForCausalLM": "gpt:opt",
    "Phi3ForCausalLM": "llama:phi3",
    "Qwen2ForCausalLM": "llama:qwen2",
    "Qwen3ForCausalLM": "llama:qwen3",
    "Qwen3MoeForCausalLM": "moe:qwen3_moe",
}
"""Architecture → the function that reads its config, as "family:function"."""


def build(config: Any, placement: Placement, max_model_len: int) -> Transformer:
    """Make the model that a transformers config describes, for sequences of up to `max_model_len` tokens.

    Its weights are undefined until its windows are filled.  Raises ModelError for what is not supported.
    """
    from vllm.models.build import build_transformer

    return build_transformer(spec_of(config), placement, max_model_len)


def spec_of(config: Any) -> TransformerSpec:
    """Return the spec of a transformers config.  Raises ModelError for what is not supported."""
    known = architecture_of(config)
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{known}: quantized weights are not supported; use a checkpoint without quantization_config")
    family, _, function = ARCHITECTURES[known].partition(":")
    spec: TransformerSpec = getattr(importlib.import_module(f"vllm.models.families.{family}"), function)(config)
    return spec


def architecture_of(config: Any) -> str:
    """Return the name of the config's architecture.  Raises ModelError if it is not supported."""
    names = list(config.architectures or ())
    known = next((name for name in names if name in ARCHITECTURES), None)
    if known is None:
        hint = did_you_mean(names[0], ARCHITECTURES) if names else " The config names no architecture."
        raise ModelError(f"architectures={names} are not supported; known are {', '.join(ARCHITECTURES)}.{hint}")
    return known
