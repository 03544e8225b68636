"""Architectures by the names that a checkpoint's config.json gives them: a body, and what its head is for.

    Qwen2ForSequenceClassification = the body of Qwen2ForCausalLM + ForSequenceClassification, a head of classes

Knowing names needs no torch; what an architecture is made of is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.errors import ModelError, did_you_mean
from vllm.pooling_params import Pooling

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


ENCODERS: Mapping[str, str] = {
    "Bert": "encoder:bert",
    "DistilBert": "encoder:distilbert",
    "Electra": "encoder:electra",
    "Roberta": "encoder:roberta",
    "XLMRoberta": "encoder:roberta",
    "Camembert": "encoder:roberta",
}
"""Base name of an encoder → the function that reads its config."""

HEADS: Mapping[str, str] = {
    "ForCausalLM": "generate",
    "LMHeadModel": "generate",
    "ForConditionalGeneration": "generate",
    "ForSequenceClassification": "classify",
    "ForTokenClassification": "token_classify",
    "ForProcessRewardModel": "process_reward",
    "ForRewardModel": "reward",
    "ForMaskedLM": "embed",
    "BidirectionalModel": "embed",
    "TextModel": "embed",
    "Model": "embed",
}
"""End of an architecture's name → what its head is for."""

_OTHERS: Mapping[str, tuple[str, str]] = {
    "HF_ColBERT": ("Bert", "token_embed"),
    "LlamaBidirectionalForSequenceClassification": ("Llama", "classify"),
}
"""Architectures whose names don't say it: base and head."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What an architecture's name says."""

    name: str
    base: str
    body: str
    """The function that reads its config, as "family:function"."""
    head: str
    """generate, embed, classify, token_classify, token_embed, reward or process_reward"""

    @property
    def is_encoder(self) -> bool:
        return self.base in ENCODERS


def find(config: Any) -> Architecture:
    """Return the first of a config's architectures that is supported.  Raises ModelError if there is none."""
    names = list(config.architectures or ())
    for name in names:
        if found := _parse(name):
            return found
    hint = did_you_mean(names[0], ARCHITECTURES) if names else " The config names no architecture."
    known = f"{', '.join(ARCHITECTURES)}; the same with another head; {', '.join(ENCODERS)} with Model or a head"
    raise ModelError(f"architectures={names} are not supported; known are {known}.{hint}")


def architecture_of(config: Any) -> str:
    """Return the name of the config's architecture.  Raises ModelError if it is not supported."""
    return find(config).name


def build(
    config: Any, placement: Placement, max_model_len: int, pooling: Pooling | None = None, folder: Path | None = None
) -> Transformer:
    """Make the model that a transformers config describes, for sequences of up to `max_model_len` tokens.

    With `pooling` it pools, as that says; what sentence-transformers keep in `folder` is part of it then.  Its weights are
    undefined until its windows are filled.  Raises ModelError for what is not supported.
    """
    from vllm.models.build import build_transformer
    from vllm.models.heads import make_pooler

    spec = spec_of(config)
    if pooling is None:
        return build_transformer(spec, placement, max_model_len)
    pooler = make_pooler(find(config), config, spec, pooling, placement, folder)
    return build_transformer(spec, placement, max_model_len, pooler)


def spec_of(config: Any) -> TransformerSpec:
    """Return the spec of a transformers config.  Raises ModelError for what is not supported."""
    known = find(config)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{known.name}: quantized weights are not supported; use a checkpoint without quantization_config"
        )
    family, _, function = known.body.partition(":")
    spec: TransformerSpec = getattr(importlib.import_module(f"vllm.models.families.{family}"), function)(config)
    return spec


def _parse(name: str) -> Architecture | None:
    if name in ARCHITECTURES:
        return Architecture(name, _base(name), ARCHITECTURES[name], "generate")
    base, head = _OTHERS.get(name, ("", ""))
    if not base:
        end = next((end for end in HEADS if name.endswith(end)), None)
        if end is None:
            return None
        base, head = name.removesuffix(end), HEADS[end]
    bodies = {_base(known): body for known, body in reversed(ARCHITECTURES.items())} | dict(ENCODERS)
    if base not in bodies or head == "generate":
        return None
    return Architecture(name, base, bodies[base], head)


def _base(name: str) -> str:
    return next((name.removesuffix(end) for end in HEADS if name.endswith(end)), name)
