"""Tiny checkpoints of models that see and hear: random weights, and the processors that they really have."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from tests.checkpoints import spread

WORDS = ["<image>", "<video>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
WORDS += ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]
WORDS += ["<img>", "</img>", "<IMG_CONTEXT>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
WORDS += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
WORDS += ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
WORDS += ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>"]
WORDS += ["<|begin_of_video|>", "<|end_of_video|>", "<|video|>", "[AUDIO]", "[BEGIN_AUDIO]", "<|audio|>"]
WORDS += ["<img_start>", "<img_end>", "<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>"]
WORDS += ["<|tile_y_separator|>", "<image_placeholder>", "<racm3:break>", "<eoss>", "|SPEAKER|", "|NEWLINE|"]
WORDS += ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
"""What marks the places of media in prompts."""

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}


class Maker:
    """Makes the parts of checkpoints around one tokenizer."""

    def __init__(self, tokenizer_folder: Path) -> None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
        self.use(tokenizer)

    def use(self, tokenizer: Any) -> None:
        """Take another tokenizer."""
        self.tokenizer = tokenizer
        self.vocab_size = len(tokenizer)

    def id(self, word: str) -> int:
        token = self.tokenizer.convert_tokens_to_ids(word)
        assert isinstance(token, int)
        return token

    def name(self, **tokens: str) -> None:
        """Give tokens the names by which a model's processor asks for them."""
        self.tokenizer._set_model_specific_special_tokens(special_tokens=tokens)

    def text(self, model_type: str, **changes: Any) -> dict[str, Any]:
        """The configuration of the part that reads."""
        return {"model_type": model_type, "vocab_size": self.vocab_size, **TEXT, **changes}

    def save(self, folder: Path, config: Any, processor: Any) -> Path:
        kind = getattr(transformers, config.architectures[0])
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            spread(kind(config)).save_pretrained(folder)
        processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder


class NoVideo:
    """Stands for a video processor where torchvision is missing, which those need."""

    merge_size = 2
    slice_mode = False
    downsample_mode = "16x"
    _auto_class = None

    def to_dict(self) -> dict[str, Any]:
        return {}

    def save_pretrained(self, folder: Any, **options: Any) -> None:
        pass


def seeing(kind: str, images: Any, maker: Maker, videos: str, video_options: dict[str, Any], **options: Any) -> Any:
    """A processor of images and, where there is torchvision, of videos."""
    own: Any = getattr(transformers, kind)
    parts = {"image_processor": images, "tokenizer": maker.tokenizer, "video_processor": NoVideo()}
    if has_torchvision():
        parts["video_processor"] = getattr(transformers, videos)(**video_options)
        return own(*(parts[name] for name in own.get_attributes()), **options)
    body = {
        "check_argument_for_proper_class": lambda self, name, part: type(part),
        "to_dict": lambda self: {key: value for key, value in own.to_dict(self).items() if "video" not in key},
        "__module__": own.__module__,
    }
    return type(kind, (own,), body)(*(parts[name] for name in own.get_attributes()), **options)


def pil(module: str, name: str) -> Any:
    """An image processor that needs no torchvision."""
    return getattr(importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}"), name)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def llava(maker: Maker) -> tuple[Any, Any]:
    clip = pil("clip", "CLIPImageProcessorPil")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=maker.text("llama"),
        image_token_id=maker.id("<image>"),
        image_seq_length=16,
        architectures=["LlavaForConditionalGeneration"],
    )
    processor = transformers.LlavaProcessor(
        clip, maker.tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return config, processor


def llava_next(maker: Maker) -> tuple[Any, Any]:
    grid = [[32, 64], [64, 32], [64, 64]]
    images = pil("llava_next", "LlavaNextImageProcessorPil")(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=maker.text("mistral", sliding_window=None),
        image_token_id=maker.id("<image>"),
        image_seq_length=16,
        image_grid_pinpoints=grid,
        architectures=["LlavaNextForConditionalGeneration"],
    )
    return config, transformers.LlavaNextProcessor(
        images, maker.tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def granite_vision(maker: Maker) -> tuple[Any, Any]:
    config, processor = llava_next(maker)
    factors = {"embedding_multiplier": 3.0, "attention_multiplier": 0.25, "residual_multiplier": 0.5}
    text = maker.text("granite", **factors)  # transformers scales no logits here
    fields = {name: getattr(config, name) for name in ("vision_config", "image_token_id", "image_grid_pinpoints")}
    return transformers.LlavaNextConfig(**fields, text_config=text, architectures=config.architectures), processor


def llava_next_video(maker: Maker) -> tuple[Any, Any]:
    config, processor = llava_next(maker)
    videos = transformers.LlavaNextVideoVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    own = transformers.LlavaNextVideoProcessor(
        videos,
        processor.image_processor,
        maker.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    fields = {name: getattr(config, name) for name in ("vision_config", "text_config", "image_grid_pinpoints")}
    return (
        transformers.LlavaNextVideoConfig(
            **fields,
            image_token_id=maker.id("<image>"),
            video_token_id=maker.id("<video>"),
            image_seq_length=16,
            video_seq_length=4,
            architectures=["LlavaNextVideoForConditionalGeneration"],
        ),
        own,
    )


def vipllava(maker: Maker) -> tuple[Any, Any]:
    _, processor = llava(maker)
    config = transformers.VipLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32),
        text_config=maker.text("llama"),
        image_token_id=maker.id("<image>"),
        image_seq_length=16,
        vision_feature_layers=[-2, -1],
        architectures=["VipLlavaForConditionalGeneration"],
    )
    return config, processor


def llava_onevision(maker: Maker) -> tuple[Any, Any]:
    grid = [[32, 64], [64, 32], [64, 64]]
    images = pil("llava_onevision", "LlavaOnevisionImageProcessorPil")(
        size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    config = transformers.LlavaOnevisionConfig(
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=maker.text("qwen2"),
        image_token_id=maker.id("<image>"),
        video_token_id=maker.id("<video>"),
        image_grid_pinpoints=grid,
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return config, seeing(
        "LlavaOnevisionProcessor",
        images,
        maker,
        "LlavaOnevisionVideoProcessor",
        {"size": {"height": 32, "width": 32}},
        **options,
    )


ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}


def qwen_ids(maker: Maker) -> dict[str, int]:
    return {
        "image_token_id": maker.id("<|image_pad|>"),
        "video_token_id": maker.id("<|video_pad|>"),
        "vision_start_token_id": maker.id("<|vision_start|>"),
        "vision_end_token_id": maker.id("<|vision_end|>"),
    }


def qwen_images(**changes: Any) -> Any:
    sizes = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    return pil("qwen2_vl", "Qwen2VLImageProcessorPil")(
        patch_size=8, merge_size=2, temporal_patch_size=2, size=sizes, **changes
    )


QWEN_VIDEOS: dict[str, Any] = {
    "patch_size": 8,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 4 * 64 * 64},
}


def qwen2_vl(maker: Maker) -> tuple[Any, Any]:
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
    config = transformers.Qwen2VLConfig(
        text_config=maker.text("qwen2_vl_text", rope_parameters=ROPE),
        vision_config=vision,
        architectures=["Qwen2VLForConditionalGeneration"],
        **qwen_ids(maker),
    )
    return config, seeing("Qwen2VLProcessor", qwen_images(), maker, "Qwen2VLVideoProcessor", QWEN_VIDEOS)


def qwen2_5_vl(maker: Maker) -> tuple[Any, Any]:
    vision = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
    vision |= {"patch_size": 8, "window_size": 32, "fullatt_block_indexes": [1]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=maker.text("qwen2_5_vl_text", rope_parameters=ROPE),
        vision_config=vision,
        architectures=["Qwen2_5_VLForConditionalGeneration"],
        **qwen_ids(maker),
    )
    return config, seeing("Qwen2_5_VLProcessor", qwen_images(), maker, "Qwen2VLVideoProcessor", QWEN_VIDEOS)


def qwen3_vl(maker: Maker) -> tuple[Any, Any]:
    return _qwen3_vl(maker, "Qwen3VL", "qwen3_vl_text")


def qwen3_vl_moe(maker: Maker) -> tuple[Any, Any]:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    return _qwen3_vl(maker, "Qwen3VLMoe", "qwen3_vl_moe_text", **experts)


def _qwen3_vl(maker: Maker, name: str, text: str, **changes: Any) -> tuple[Any, Any]:
    vision = {"depth": 3, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
    vision |= {"patch_size": 8, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = getattr(transformers, f"{name}Config")(
        text_config=maker.text(text, rope_parameters={**ROPE, "mrope_interleaved": True}, **changes),
        vision_config=vision,
        architectures=[f"{name}ForConditionalGeneration"],
        **qwen_ids(maker),
    )
    return config, seeing("Qwen3VLProcessor", qwen_images(), maker, "Qwen3VLVideoProcessor", QWEN_VIDEOS)


def gemma3(maker: Maker) -> tuple[Any, Any]:
    maker.name(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    images = pil("gemma3", "Gemma3ImageProcessorPil")(size={"height": 32, "width": 32})
    config = transformers.Gemma3Config(
        text_config=maker.text("gemma3_text", sliding_window=24, query_pre_attn_scalar=16),
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_id=maker.id("<image_soft_token>"),
        boi_token_index=maker.id("<start_of_image>"),
        eoi_token_index=maker.id("<end_of_image>"),
        architectures=["Gemma3ForConditionalGeneration"],
    )
    return config, transformers.Gemma3Processor(images, maker.tokenizer, image_seq_length=4)


def paligemma(maker: Maker) -> tuple[Any, Any]:
    images = pil("siglip", "SiglipImageProcessorPil")(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    config = transformers.PaliGemmaConfig(
        text_config=maker.text("gemma"),
        vision_config=transformers.SiglipVisionConfig(**VISION, projection_dim=64, vision_use_head=False),
        image_token_id=maker.id("<image>"),
        projection_dim=64,
        architectures=["PaliGemmaForConditionalGeneration"],
    )
    maker.tokenizer.add_special_tokens({"bos_token": "<|end|>"})
    return config, transformers.PaliGemmaProcessor(images, maker.tokenizer)


def internvl(maker: Maker) -> tuple[Any, Any]:
    maker.name(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    images = pil("got_ocr2", "GotOcr2ImageProcessorPil")(
        size={"height": 32, "width": 32},
        crop_to_patches=True,
        min_patches=1,
        max_patches=4,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    config = transformers.InternVLConfig(
        text_config=maker.text("qwen2"),
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        image_token_id=maker.id("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        architectures=["InternVLForConditionalGeneration"],
    )
    videos = {"size": {"height": 32, "width": 32}}
    return config, seeing("InternVLProcessor", images, maker, "InternVLVideoProcessor", videos, image_seq_length=4)


def idefics3(maker: Maker) -> tuple[Any, Any]:
    images = pil("idefics3", "Idefics3ImageProcessorPil")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    config = transformers.Idefics3Config(
        text_config=maker.text("llama"),
        vision_config=VISION,
        image_token_id=maker.id("<image>"),
        scale_factor=2,
        pad_token_id=1,
        architectures=["Idefics3ForConditionalGeneration"],
    )
    return config, transformers.Idefics3Processor(images, maker.tokenizer, image_seq_len=4)


def smolvlm(maker: Maker) -> tuple[Any, Any]:
    images = pil("smolvlm", "SmolVLMImageProcessorPil")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    config = transformers.SmolVLMConfig(
        text_config=maker.text("llama"),
        vision_config=VISION,
        image_token_id=maker.id("<image>"),
        scale_factor=2,
        pad_token_id=1,
        architectures=["SmolVLMForConditionalGeneration"],
    )
    videos = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    return config, seeing("SmolVLMProcessor", images, maker, "SmolVLMVideoProcessor", videos, image_seq_len=4)


def mistral3(maker: Maker) -> tuple[Any, Any]:
    images = pil("pixtral", "PixtralImageProcessorPil")(size={"longest_edge": 64}, patch_size=8)
    config = transformers.Mistral3Config(
        text_config=maker.text("mistral", sliding_window=None),
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 16, "image_size": 64},
        image_token_id=maker.id("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        architectures=["Mistral3ForConditionalGeneration"],
    )
    return config, transformers.PixtralProcessor(images, maker.tokenizer, patch_size=8, spatial_merge_size=2)


def pixtral(maker: Maker) -> tuple[Any, Any]:
    images = pil("pixtral", "PixtralImageProcessorPil")(size={"longest_edge": 64}, patch_size=8)
    config = transformers.LlavaConfig(
        text_config=maker.text("mistral", sliding_window=None),
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 16, "image_size": 64},
        image_token_id=maker.id("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        architectures=["LlavaForConditionalGeneration"],
    )
    return config, transformers.PixtralProcessor(images, maker.tokenizer, patch_size=8)


def aya_vision(maker: Maker) -> tuple[Any, Any]:
    images = pil("got_ocr2", "GotOcr2ImageProcessorPil")(
        size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
    )
    config = transformers.AyaVisionConfig(
        text_config=maker.text("cohere2", sliding_window=24),
        vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_id=maker.id("<|IMG_PATCH|>"),
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
        architectures=["AyaVisionForConditionalGeneration"],
    )
    return config, transformers.AyaVisionProcessor(
        images, maker.tokenizer, patch_size=8, img_size=32, downsample_factor=2
    )


def aria(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image>")
    images = pil("aria", "AriaImageProcessorPil")(max_image_size=980, split_image=False)
    experts = {"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}
    config = transformers.AriaConfig(
        vision_config={**VISION, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 140},
        text_config=maker.text("aria_text", **experts),
        image_token_index=maker.id("<image>"),
        projector_patch_to_query_dict={49: 4},
        architectures=["AriaForConditionalGeneration"],
    )
    return config, transformers.AriaProcessor(images, maker.tokenizer, size_conversion={980: 4})


def mllama(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<|image|>")
    maker.tokenizer.add_special_tokens({"bos_token": "<|end|>"})
    images = pil("mllama", "MllamaImageProcessorPil")(size={"height": 32, "width": 32}, max_image_tiles=2)
    vision = {**VISION, "attention_heads": 4, "num_global_layers": 1, "vision_output_dim": 128, "max_num_tiles": 2}
    vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    text = maker.text("mllama_text_model", num_hidden_layers=4, cross_attention_layers=[1, 3])
    config = transformers.MllamaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=maker.id("<|image|>"),
        architectures=["MllamaForConditionalGeneration"],
    )
    return config, transformers.MllamaProcessor(images, maker.tokenizer)


def chameleon(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>", sep_token="<|end|>")
    images = pil("chameleon", "ChameleonImageProcessorPil")(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    vocabulary = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 100 + i for i in range(16)} | {
        "<image>": maker.id("<image>")
    }
    config = transformers.ChameleonConfig(
        **{**TEXT, "vocab_size": maker.vocab_size},
        vocabulary_map=vocabulary,
        vq_config={
            "embed_dim": 16,
            "num_embeddings": 16,
            "latent_channels": 16,
            "resolution": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 2, 2],
            "num_res_blocks": 1,
        },
        architectures=["ChameleonForConditionalGeneration"],
    )
    return config, transformers.ChameleonProcessor(images, maker.tokenizer, image_seq_length=64)


def chameleon_swin(maker: Maker) -> tuple[Any, Any]:
    config, processor = chameleon(maker)
    config.swin_norm = True
    return config, processor


def deepseek_vl(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image_placeholder>")
    images = pil("deepseek_vl", "DeepseekVLImageProcessorPil")(size={"height": 32, "width": 32}, min_size=4)
    config = transformers.DeepseekVLConfig(
        text_config=maker.text("llama"),
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        image_token_id=maker.id("<image_placeholder>"),
        architectures=["DeepseekVLForConditionalGeneration"],
    )
    return config, transformers.DeepseekVLProcessor(images, maker.tokenizer, num_image_tokens=16)


def ovis2(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image>")
    images = pil("ovis2", "Ovis2ImageProcessorPil")(size={"height": 32, "width": 32}, crop_to_patches=True)
    config = transformers.Ovis2Config(
        vision_config={**VISION, "hidden_stride": 2, "num_visual_indicator_tokens": 5, "vocab_size": 64},
        text_config=maker.text("qwen2"),
        image_token_id=maker.id("<IMG_ATOM>"),
        hidden_size=64,
        visual_indicator_token_ids=[maker.id(word) for word in WORDS[-5:]],
        architectures=["Ovis2ForConditionalGeneration"],
    )
    return config, transformers.Ovis2Processor(images, maker.tokenizer, image_seq_length=4)


def glm4v(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<|image|>", video_token="<|video|>")
    sizes = {"shortest_edge": 16 * 16 * 2, "longest_edge": 64 * 64 * 2}
    images = pil("glm4v", "Glm4vImageProcessorPil")(patch_size=8, merge_size=2, temporal_patch_size=2, size=sizes)
    vision = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
    vision |= {"patch_size": 8, "image_size": 32, "spatial_merge_size": 2}
    config = transformers.Glm4vConfig(
        text_config=maker.text(
            "glm4v_text", rope_parameters={**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
        ),
        vision_config=vision,
        image_token_id=maker.id("<|image|>"),
        video_token_id=maker.id("<|video|>"),
        image_start_token_id=maker.id("<|begin_of_image|>"),
        image_end_token_id=maker.id("<|end_of_image|>"),
        video_start_token_id=maker.id("<|begin_of_video|>"),
        video_end_token_id=maker.id("<|end_of_video|>"),
        architectures=["Glm4vForConditionalGeneration"],
    )
    videos = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    return config, seeing("Glm4vProcessor", images, maker, "Glm4vVideoProcessor", videos)


SEEING = (
    (
        llava,
        pixtral,
        llava_next,
        granite_vision,
        llava_next_video,
        vipllava,
        llava_onevision,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_vl_moe,
    )
    + (gemma3, internvl, idefics3, smolvlm, mistral3, aya_vision, glm4v, deepseek_vl, aria, ovis2, paligemma)
    + (
        chameleon,
        chameleon_swin,
        mllama,
    )
)


def has_torchvision() -> bool:
    return importlib.util.find_spec("torchvision") is not None
