"""The models that take media, by the names of their architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm.messages import Modality
from vllm.models.media.spec import MediaSpec

_BOTH: Mapping[Modality, str] = {"image": "image_token_id", "video": "video_token_id"}
_SPATIAL = MediaSpec(_BOTH, positions="spatial")

KINDS: Mapping[str, MediaSpec] = {
    "AyaVisionForConditionalGeneration": MediaSpec(text="cohere2"),
    "DeepseekVLForConditionalGeneration": MediaSpec(),
    "Gemma3ForConditionalGeneration": MediaSpec(sees="medium"),
    "Glm4vForConditionalGeneration": replace(_SPATIAL, text="glm4"),
    "Idefics3ForConditionalGeneration": MediaSpec(),
    "InternVLForConditionalGeneration": MediaSpec(),
    "LlavaForConditionalGeneration": MediaSpec(),
    "LlavaNextForConditionalGeneration": MediaSpec(),
    "LlavaNextVideoForConditionalGeneration": MediaSpec(_BOTH),
    "LlavaOnevisionForConditionalGeneration": MediaSpec(_BOTH),
    "Mistral3ForConditionalGeneration": MediaSpec(),
    "Qwen2VLForConditionalGeneration": _SPATIAL,
    "Qwen2_5_VLForConditionalGeneration": _SPATIAL,
    "Qwen3VLForConditionalGeneration": _SPATIAL,
    "Qwen3VLMoeForConditionalGeneration": replace(_SPATIAL, text="qwen3_moe"),
    "SmolVLMForConditionalGeneration": MediaSpec(),
    "VipLlavaForConditionalGeneration": MediaSpec(),
}

TEXT_FAMILIES: Mapping[str, str] = {
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
}
"""Model type of a text part → the architecture that it is, where transformers has none of that name"""
