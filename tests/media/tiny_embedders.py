"""Tiny checkpoints of models that embed texts and pictures."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers.processors import TemplateProcessing

from tests.conftest import _sentencepiece
from tests.media.tiny import TEXT, VISION, Maker, paligemma, pil, qwen2_vl

_NOT_OF_TEXTS = ("num_key_value_heads", "head_dim", "max_position_embeddings")


def _texts(maker: Maker) -> dict[str, Any]:
    """The tower of texts, which end with a token of their own."""
    maker.tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A <|im_end|>", None, [("<|im_end|>", 2)])
    return _sizes(maker)


def _sizes(maker: Maker) -> dict[str, Any]:
    sizes = {name: value for name, value in TEXT.items() if name not in _NOT_OF_TEXTS}
    return sizes | {"vocab_size": maker.vocab_size + 16, "max_position_embeddings": 32, "eos_token_id": 2}


def clip(maker: Maker) -> tuple[Any, Any]:
    return _clip(maker, "CLIP", {})


def metaclip_2(maker: Maker) -> tuple[Any, Any]:
    return _clip(maker, "MetaClip2", {})


def _clip(maker: Maker, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    images = pil("clip", "CLIPImageProcessorPil")(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = getattr(transformers, f"{name}Config")(
        text_config={**_texts(maker), **options},
        vision_config=VISION,
        projection_dim=48,
        architectures=[f"{name}Model"],
    )
    return config, transformers.CLIPProcessor(images, maker.tokenizer)


def chinese_clip(maker: Maker) -> tuple[Any, Any]:
    images = pil("chinese_clip", "ChineseCLIPImageProcessorPil")(size={"height": 32, "width": 32}, do_center_crop=False)
    config = transformers.ChineseCLIPConfig(
        text_config=_texts(maker), vision_config=VISION, projection_dim=48, architectures=["ChineseCLIPModel"]
    )
    return config, transformers.ChineseCLIPProcessor(images, maker.tokenizer)


def siglip(maker: Maker) -> tuple[Any, Any]:
    images = pil("siglip", "SiglipImageProcessorPil")(size={"height": 32, "width": 32})
    config = transformers.SiglipConfig(
        text_config={**_texts(maker), "projection_size": 64}, vision_config=VISION, architectures=["SiglipModel"]
    )
    return config, transformers.SiglipProcessor(images, maker.tokenizer)


def siglip2(maker: Maker) -> tuple[Any, Any]:
    maker.use(_sentencepiece())
    maker.tokenizer.add_special_tokens({"pad_token": "<pad>"})
    images = pil("siglip2", "Siglip2ImageProcessorPil")()
    vision = {name: value for name, value in VISION.items() if name != "image_size"}
    config = transformers.Siglip2Config(
        text_config={**_sizes(maker), "projection_size": 64},
        vision_config={**vision, "patch_size": 16, "num_patches": 256},
        architectures=["Siglip2Model"],
    )
    return config, transformers.Siglip2Processor(images, maker.tokenizer)


def colqwen2(maker: Maker) -> tuple[Any, Any]:
    maker.tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    maker.use(maker.tokenizer)
    vlm, processor = qwen2_vl(maker)
    config = transformers.ColQwen2Config(
        vlm_config=vlm.to_dict(), embedding_dim=24, architectures=["ColQwen2ForRetrieval"]
    )
    return config, transformers.ColQwen2Processor(processor.image_processor, maker.tokenizer)


def colpali(maker: Maker) -> tuple[Any, Any]:
    vlm, processor = paligemma(maker)
    config = transformers.ColPaliConfig(
        vlm_config=vlm.to_dict(), embedding_dim=24, architectures=["ColPaliForRetrieval"]
    )
    return config, transformers.ColPaliProcessor(processor.image_processor, maker.tokenizer)


PAIRS = (clip, metaclip_2, chinese_clip, siglip, siglip2)
RETRIEVERS = (colqwen2, colpali)
EMBEDDERS = PAIRS + RETRIEVERS
