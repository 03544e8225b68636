"""The models that take media, by the names of their architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm.messages import Modality
from vllm.models.media.spec import MediaSpec

_BOTH: Mapping[Modality, str] = {"image": "image_token_id", "video": "video_token_id"}
_SPATIAL = MediaSpec(_BOTH, positions="spatial")

_HEARS: Mapping[Modality, str] = {"audio": "audio_token_id"}

KINDS: Mapping[str, MediaSpec] = {
    "AriaForConditionalGeneration": MediaSpec(text="aria"),
    "AyaVisionForConditionalGeneration": MediaSpec(text="cohere2"),
    "Blip2ForConditionalGeneration": MediaSpec(prompts="bare"),
    "ChameleonForConditionalGeneration": MediaSpec(
        text="chameleon", prompts="whole", reads="vocabulary", decoder="model.norm"
    ),
    "Cohere2VisionForConditionalGeneration": MediaSpec(text="cohere2"),
    "ColPaliForRetrieval": MediaSpec({"image": "vlm_config.image_token_id"}, prompts="framed", sees="all"),
    "ColQwen2ForRetrieval": MediaSpec({"image": "vlm_config.image_token_id"}, prompts="framed", positions="spatial"),
    "DeepseekVLForConditionalGeneration": MediaSpec(),
    "DeepseekVLHybridForConditionalGeneration": MediaSpec(),
    "FuyuForCausalLM": MediaSpec(prompts="bare", options={"return_legacy_image_output": False}),
    "Gemma3ForConditionalGeneration": MediaSpec(sees="medium"),
    "Glm4vForConditionalGeneration": replace(_SPATIAL, text="glm4"),
    "Glm4vMoeForConditionalGeneration": replace(_SPATIAL, text="glm4_moe"),
    "GraniteSpeechForConditionalGeneration": MediaSpec(_HEARS, reads="forward"),
    "Idefics2ForConditionalGeneration": MediaSpec(prompts="whole"),
    "Idefics3ForConditionalGeneration": MediaSpec(),
    "InstructBlipForConditionalGeneration": MediaSpec(prompts="bare", reads_text=True),
    "InternVLChatModel": MediaSpec(
        processor="vllm.inputs.media.internvl:InternVL",
        module="InternVLForConditionalGeneration",
        layout="internvl_chat",
        text="named",
    ),
    "InternVLForConditionalGeneration": MediaSpec(),
    "Kimi_K25ForConditionalGeneration": MediaSpec(_BOTH),
    "Llama4ForConditionalGeneration": MediaSpec(reads="forward"),
    "LlavaForConditionalGeneration": MediaSpec(),
    "LlavaNextForConditionalGeneration": MediaSpec(),
    "LlavaNextVideoForConditionalGeneration": MediaSpec(_BOTH),
    "LlavaOnevisionForConditionalGeneration": MediaSpec(_BOTH),
    "MllamaForConditionalGeneration": MediaSpec(text="mllama", prompts="whole", reads="states"),
    "MiniCPMV4_6ForConditionalGeneration": MediaSpec(_BOTH, prompts="whole"),
    "Mistral3ForConditionalGeneration": MediaSpec(),
    "Molmo2ForConditionalGeneration": MediaSpec(text="molmo2", prompts="whole", reads="sum", sees="media"),
    "Ovis2ForConditionalGeneration": MediaSpec(beside="visual_indicator_token_ids", reads="forward"),
    "PaliGemmaForConditionalGeneration": MediaSpec(sees="prompt", prompts="bare"),
    "Phi4MultimodalForCausalLM": MediaSpec(
        {"image": "vision_config.image_token_id", "audio": "audio_config.audio_token_id"},
        reads="forward",
        decoder="model.norm",
        attention="eager",  # sdpa would hide later patches from earlier ones where none is masked
        notices="image_pixel_values",
    ),
    "Qwen2AudioForConditionalGeneration": MediaSpec(_HEARS, reads="forward"),
    "Qwen2VLForConditionalGeneration": _SPATIAL,
    "Qwen2_5_VLForConditionalGeneration": _SPATIAL,
    "Qwen3VLForConditionalGeneration": _SPATIAL,
    "Qwen3VLMoeForConditionalGeneration": replace(_SPATIAL, text="qwen3_moe"),
    "Qwen3_5ForConditionalGeneration": _SPATIAL,
    "SmolVLMForConditionalGeneration": MediaSpec(),
    "VoxtralForConditionalGeneration": MediaSpec(_HEARS, processor="vllm.inputs.media.voxtral:Voxtral"),
    "VipLlavaForConditionalGeneration": MediaSpec(),
}

PAIRS = ("ChineseCLIPModel", "CLIPModel", "MetaClip2Model", "Siglip2Model", "SiglipModel")
"""Models of transformers that embed texts and pictures, each by a tower of its own"""

TEXT_FAMILIES: Mapping[str, str] = {
    "phi4_multimodal": "Phi3ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
}
"""Model type of a text part → the architecture that it is, where transformers has none of that name"""
