"""The models that take media, by the names of their architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from vllm.messages import Modality
from vllm.models.media.spec import MediaSpec

_BOTH: Mapping[Modality, str] = {"image": "image_token_id", "video": "video_token_id"}
_SPATIAL = MediaSpec(_BOTH, positions="spatial")

_HEARS: Mapping[Modality, str] = {"audio": "audio_token_id"}

_INTERNVL = MediaSpec(
    processor="vllm.inputs.media.internvl:InternVL",
    module="InternVLForConditionalGeneration",
    layout="internvl_chat",
    text="named",
)
_NVLM = MediaSpec(
    processor="vllm.inputs.media.internvl:NVLM", tower="vllm.models.media.nvlm:Eye", layout="nvlm_d", text="named"
)

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
    "DeepseekVLV2ForCausalLM": MediaSpec(
        processor="vllm.inputs.media.deepseek_vl_v2:DeepseekVLV2",
        tower="vllm.models.media.deepseek_vl_v2:Eye",
        layout="deepseek_vl_v2",
        text="named",
    ),
    "FuyuForCausalLM": MediaSpec(prompts="bare", options={"return_legacy_image_output": False}),
    "GLM4VForCausalLM": MediaSpec(
        beside="image_marks",
        positions="spatial",
        processor="vllm.inputs.media.glm_4v:GLM4V",
        tower="vllm.models.media.glm_4v:Eye",
        layout="glm_4v",
        text="chatglm",
    ),
    "Gemma3ForConditionalGeneration": MediaSpec(sees="medium"),
    "Glm4vForConditionalGeneration": replace(_SPATIAL, text="glm4"),
    "Glm4vMoeForConditionalGeneration": replace(_SPATIAL, text="glm4_moe"),
    "GraniteSpeechForConditionalGeneration": MediaSpec(_HEARS, reads="forward"),
    "H2OVLChatModel": replace(_INTERNVL, processor="vllm.inputs.media.internvl:H2OVL"),
    "Idefics2ForConditionalGeneration": MediaSpec(prompts="whole"),
    "Idefics3ForConditionalGeneration": MediaSpec(),
    "InstructBlipForConditionalGeneration": MediaSpec(prompts="bare", reads_text=True),
    "InternVLChatModel": _INTERNVL,
    "InternVLForConditionalGeneration": MediaSpec(),
    "Kimi_K25ForConditionalGeneration": MediaSpec(_BOTH),
    "Llama4ForConditionalGeneration": MediaSpec(reads="forward"),
    "LlavaForConditionalGeneration": MediaSpec(),
    "LlavaNextForConditionalGeneration": MediaSpec(),
    "LlavaNextVideoForConditionalGeneration": MediaSpec(_BOTH),
    "LlavaOnevisionForConditionalGeneration": MediaSpec(_BOTH),
    "MiniCPMO": MediaSpec(
        {"image": "image_token_id", "audio": "audio_token_id"},
        processor="vllm.inputs.media.minicpm_o:MiniCPMO",
        tower="vllm.models.media.minicpm_o:EyeAndEar",
        layout="minicpm_o",
    ),
    "MiniCPMV": MediaSpec(
        processor="vllm.inputs.media.minicpm_v:MiniCPMV", tower="vllm.models.media.minicpm_v:Eye", layout="minicpm_v"
    ),
    "MiniCPMV4_6ForConditionalGeneration": MediaSpec(_BOTH, prompts="whole"),
    "Mistral3ForConditionalGeneration": MediaSpec(),
    "Molmo2ForConditionalGeneration": MediaSpec(text="molmo2", prompts="whole", reads="sum", sees="media"),
    "MllamaForConditionalGeneration": MediaSpec(text="mllama", prompts="whole", reads="states"),
    "MolmoForCausalLM": MediaSpec(
        beside="image_marks",
        processor="vllm.inputs.media.molmo:Molmo",
        tower="vllm.models.media.molmo:Eye",
        layout="molmo",
        text="molmo",
    ),
    "NVLM_D": _NVLM,
    "NVLM_D_Model": _NVLM,
    "Ovis2ForConditionalGeneration": MediaSpec(beside="visual_indicator_token_ids", reads="forward"),
    "PaliGemmaForConditionalGeneration": MediaSpec(sees="prompt", prompts="bare"),
    "Phi3VForCausalLM": MediaSpec(
        processor="vllm.inputs.media.phi3_v:Phi3V", tower="vllm.models.media.phi3_v:Eye", layout="phi3_v"
    ),
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
    "QwenVLForConditionalGeneration": MediaSpec(
        processor="vllm.inputs.media.qwen_vl:QwenVL",
        tower="vllm.models.media.qwen_vl:Eye",
        layout="qwen_vl",
        text="named",
    ),
    "SmolVLMForConditionalGeneration": MediaSpec(),
    "UltravoxModel": MediaSpec(
        {"audio": "audio_token_id"},
        processor="vllm.inputs.media.ultravox:Ultravox",
        tower="vllm.models.media.ultravox:Ear",
        layout="ultravox",
    ),
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
