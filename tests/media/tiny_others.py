"""More tiny checkpoints: models whose processors do more than fill in placeholders, and models of many parts."""

from __future__ import annotations

import copy
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace

from tests.media.tiny import QWEN_VIDEOS, ROPE, VISION, Maker, pil, qwen_ids, qwen_images, seeing


def fuyu(maker: Maker) -> tuple[Any, Any]:
    maker.use(_sentences())
    images = pil("fuyu", "FuyuImageProcessorPil")(
        size={"height": 32, "width": 48}, patch_size={"height": 8, "width": 8}
    )
    text = maker.text("persimmon", num_key_value_heads=4, hidden_act="relu2", partial_rotary_factor=0.5)
    config = transformers.FuyuConfig(
        text_config=text,
        patch_size=8,
        image_size=32,
        image_token_id=maker.id("|SPEAKER|"),
        architectures=["FuyuForCausalLM"],
    )
    return config, transformers.FuyuProcessor(images, maker.tokenizer)


def _sentences() -> Any:
    """A tokenizer that puts a mark before every text, which the processor takes off before a picture."""
    words = ("<pad>", "<unk>", "<s>", "|SPEAKER|", "|NEWLINE|", "<0x04>")
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    pieces = [(word, 0.0) for word in words] + [(letter, -2.0) for letter in letters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def blip_2(maker: Maker) -> tuple[Any, Any]:
    images = pil("blip", "BlipImageProcessorPil")(size={"height": 32, "width": 32})
    former = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"ffn_dim": 96, "word_embed_proj_dim": 64, "dropout": 0.0}
    config = transformers.Blip2Config(
        vision_config=VISION,
        qformer_config=former,
        text_config=maker.text("opt", **text),
        num_query_tokens=4,
        image_token_index=maker.id("<image>"),
        architectures=["Blip2ForConditionalGeneration"],
    )
    return config, transformers.Blip2Processor(images, maker.tokenizer, num_query_tokens=4)


def deepseek_vl_hybrid(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image_placeholder>")
    images = pil("deepseek_vl_hybrid", "DeepseekVLHybridImageProcessorPil")(
        size={"height": 32, "width": 32}, min_size=4, high_res_size={"height": 64, "width": 64}
    )
    sam = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 4}
    sam |= {"output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    config = transformers.DeepseekVLHybridConfig(
        text_config=maker.text("llama"),
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        high_res_vision_config={"model_type": "sam_vision_model", **sam},
        image_token_id=maker.id("<image_placeholder>"),
        architectures=["DeepseekVLHybridForConditionalGeneration"],
    )
    return config, transformers.DeepseekVLHybridProcessor(images, maker.tokenizer, num_image_tokens=16)


def glm4v_moe(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<|image|>", video_token="<|video|>")
    sizes = {"shortest_edge": 16 * 16 * 2, "longest_edge": 64 * 64 * 2}
    images = pil("glm4v", "Glm4vImageProcessorPil")(patch_size=8, merge_size=2, temporal_patch_size=2, size=sizes)
    vision = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
    vision |= {"patch_size": 8, "image_size": 32, "spatial_merge_size": 2}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1}
    rope = {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]}
    config = transformers.Glm4vMoeConfig(
        text_config=maker.text("glm4v_moe_text", rope_parameters=rope, **experts),
        vision_config=vision,
        image_token_id=maker.id("<|image|>"),
        video_token_id=maker.id("<|video|>"),
        image_start_token_id=maker.id("<|begin_of_image|>"),
        image_end_token_id=maker.id("<|end_of_image|>"),
        video_start_token_id=maker.id("<|begin_of_video|>"),
        video_end_token_id=maker.id("<|end_of_video|>"),
        architectures=["Glm4vMoeForConditionalGeneration"],
    )
    videos = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": sizes}
    return config, seeing("Glm4vProcessor", images, maker, "Glm4vVideoProcessor", videos)


def kimi_k25(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<|image_pad|>", video_token="<|video_pad|>")
    sizes = {"max_height": 64, "max_width": 64}
    images = transformers.Kimi_K25ImageProcessor(size=sizes, patch_size=8, merge_size=2, max_patches=64)
    vision = {**VISION, "pos_emb_height": 8, "pos_emb_width": 8, "patch_size": 8}
    text = {"num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16}
    text |= {"qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2}
    text |= {"moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "head_dim": 8}
    config = transformers.Kimi_K25Config(
        text_config=maker.text("deepseek_v3", **text),
        vision_config=vision,
        projection_hidden_size=64,
        image_token_id=maker.id("<|image_pad|>"),
        video_token_id=maker.id("<|video_pad|>"),
        architectures=["Kimi_K25ForConditionalGeneration"],
    )
    videos = {"size": sizes, "patch_size": 8, "merge_size": 2}
    return config, seeing("Kimi_K25Processor", images, maker, "Kimi_K25VideoProcessor", videos)


def phi4_multimodal(maker: Maker) -> tuple[Any, Any]:
    maker.name(image_token="<image>", audio_token="<|audio|>")
    images = transformers.Phi4MultimodalImageProcessor(dynamic_hd=2)
    sounds = transformers.Phi4MultimodalFeatureExtractor()
    # its processor counts on pictures of 448 pixels in patches of 14
    vision = {**VISION, "image_size": 448, "patch_size": 14, "image_token_id": maker.id("<image>")}
    audio = {"hidden_size": 32, "intermediate_size": 48, "num_blocks": 2, "num_attention_heads": 2}
    audio |= {"ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 16}
    audio |= {"audio_token_id": maker.id("<|audio|>")}
    text = {key: value for key, value in maker.text("phi4_multimodal").items() if key != "model_type"}
    config = transformers.Phi4MultimodalConfig(
        **text,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        vision_config=vision,
        audio_config=audio,
        architectures=["Phi4MultimodalForCausalLM"],
    )
    return config, transformers.Phi4MultimodalProcessor(images, sounds, maker.tokenizer)


def minicpmv4_6(maker: Maker) -> tuple[Any, Any]:
    maker.name(
        image_token="<|image_pad|>", video_token="<|video_pad|>", image_start_token="<img>", image_end_token="</img>",
        slice_start_token="<img_start>", slice_end_token="<img_end>", image_id_start_token="<IMG_START>",
        image_id_end_token="<IMG_END>",
    )  # fmt: skip
    images = pil("minicpmv4_6", "MiniCPMV4_6ImageProcessorPil")(patch_size=8, scale_resolution=32, max_slice_nums=4)
    text = maker.text("qwen3_5_text", layer_types=["linear_attention", "full_attention"])
    text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    text |= {"linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
    config = transformers.MiniCPMV4_6Config(
        text_config=text,
        vision_config={**VISION, "insert_layer_id": 0},
        insert_layer_id=0,
        image_size=32,
        image_token_id=maker.id("<|image_pad|>"),
        video_token_id=maker.id("<|video_pad|>"),
        architectures=["MiniCPMV4_6ForConditionalGeneration"],
    )
    kind = "MiniCPMV4_6Processor"
    return config, seeing(kind, images, maker, "MiniCPMV4_6VideoProcessor", {"patch_size": 8, "scale_resolution": 32})


def llama4(maker: Maker) -> tuple[Any, Any]:
    images = transformers.Llama4ImageProcessor(size={"height": 32, "width": 32}, max_patches=4)
    vision = {**VISION, "vision_output_dim": 48, "projector_input_dim": 48, "projector_output_dim": 48}
    text = {"intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1, "attention_chunk_size": 32}
    text |= {"interleave_moe_layer_step": 2, "no_rope_layers": [1, 0], "moe_layers": [1]}
    config = transformers.Llama4Config(
        text_config=maker.text("llama4_text", **text),
        vision_config={**vision, "intermediate_size": 256},
        image_token_index=maker.id("<|patch|>"),
        boi_token_index=maker.id("<|image_start|>"),
        eoi_token_index=maker.id("<|image_end|>"),
        architectures=["Llama4ForConditionalGeneration"],
    )
    return config, transformers.Llama4Processor(images, maker.tokenizer, patch_size=8)


def instructblip(maker: Maker) -> tuple[Any, Any]:
    images = pil("blip", "BlipImageProcessorPil")(size={"height": 32, "width": 32})
    former = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.InstructBlipConfig(
        vision_config=VISION,
        qformer_config={**former, "vocab_size": maker.vocab_size},
        text_config=maker.text("llama"),
        num_query_tokens=4,
        image_token_index=maker.id("<image>"),
        architectures=["InstructBlipForConditionalGeneration"],
    )
    own = copy.deepcopy(maker.tokenizer)
    return config, transformers.InstructBlipProcessor(images, maker.tokenizer, own, num_query_tokens=4)


def qwen3_5(maker: Maker) -> tuple[Any, Any]:
    vision = {"depth": 2, "hidden_size": 64, "out_hidden_size": 64, "num_heads": 4, "intermediate_size": 96}
    text = maker.text("qwen3_5_text", layer_types=["linear_attention", "full_attention"])
    text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8}
    text |= {"linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
    text |= {"rope_parameters": {**ROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}}
    config = transformers.Qwen3_5Config(
        text_config=text,
        vision_config={**vision, "patch_size": 8, "num_position_embeddings": 64},
        architectures=["Qwen3_5ForConditionalGeneration"],
        **qwen_ids(maker),
    )
    return config, seeing("Qwen3VLProcessor", qwen_images(), maker, "Qwen3VLVideoProcessor", QWEN_VIDEOS)


def cohere2_vision(maker: Maker) -> tuple[Any, Any]:
    maker.name(
        boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>", image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )  # fmt: skip
    images = transformers.Cohere2VisionImageProcessor(size={"height": 32, "width": 32}, patch_size=2, max_patches=4)
    config = transformers.Cohere2VisionConfig(
        text_config=maker.text("cohere2", sliding_window=24),
        vision_config={**VISION, "model_type": "siglip_vision_model", "vision_use_head": False},
        alignment_intermediate_size=96,
        image_token_id=maker.id("<|IMG_PATCH|>"),
        architectures=["Cohere2VisionForConditionalGeneration"],
    )
    return config, transformers.Cohere2VisionProcessor(images, maker.tokenizer)


def idefics2(maker: Maker) -> tuple[Any, Any]:
    images = pil("idefics2", "Idefics2ImageProcessorPil")(
        size={"shortest_edge": 16, "longest_edge": 32}, do_image_splitting=False
    )
    perceiver = {"hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2}
    perceiver |= {"resampler_head_dim": 16, "num_key_value_heads": 2}
    config = transformers.Idefics2Config(
        text_config=maker.text("mistral", sliding_window=None),
        vision_config=VISION,
        perceiver_config=perceiver,
        image_token_id=maker.id("<image>"),
        architectures=["Idefics2ForConditionalGeneration"],
    )
    return config, transformers.Idefics2Processor(images, maker.tokenizer, image_seq_len=4)


MOLMO2_WORDS = [
    "<im_patch>",
    "<im_col>",
    "<im_start>",
    "<low_res_im_start>",
    "<frame_start>",
    "<im_end>",
    "<frame_end>",
    "<im_low>",
]


def molmo2(maker: Maker) -> tuple[Any, Any]:
    maker.tokenizer.add_special_tokens({"bos_token": "<|end|>"})
    maker.tokenizer.add_tokens(MOLMO2_WORDS, special_tokens=True)
    maker.use(maker.tokenizer)
    images = transformers.Molmo2ImageProcessor(
        size={"height": 32, "width": 32}, max_crops=4, overlap_margins=[1, 1], patch_size=8, pooling_size=[2, 2]
    )
    vision = {**VISION, "num_key_value_heads": 4, "head_dim": 16, "image_size": [32, 32]}
    adapter = {"vision_feature_layer": [-1, 0], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    adapter |= {"head_dim": 16, "text_hidden_size": 64, "intermediate_size": 96}
    half = -(-maker.vocab_size // 2)  # transformers writes the table in halves, wherever its parts may meet
    text = maker.text("molmo2_text", additional_vocab_size=half) | {"vocab_size": half}
    config = transformers.Molmo2Config(
        text_config=text,
        vision_config=vision,
        adapter_config=adapter,
        image_patch_id=maker.id("<im_patch>"),
        image_start_token_id=maker.id("<im_start>"),
        low_res_image_start_token_id=maker.id("<low_res_im_start>"),
        image_end_token_id=maker.id("<im_end>"),
        frame_start_token_id=maker.id("<frame_start>"),
        frame_end_token_id=maker.id("<frame_end>"),
        architectures=["Molmo2ForConditionalGeneration"],
    )
    videos = {"size": {"height": 32, "width": 32}, "patch_size": 8}
    return config, seeing("Molmo2Processor", images, maker, "Molmo2VideoProcessor", videos)


def molmo2_o(maker: Maker) -> tuple[Any, Any]:
    config, processor = molmo2(maker)
    text = config.text_config
    text.qk_norm_type, text.norm_after, text.rope_scaling_layers, text.attention_bias = "olmo", True, [1], True
    text.rope_parameters = {
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    return config, processor


OTHERS = (fuyu, blip_2, instructblip, deepseek_vl_hybrid, glm4v_moe, kimi_k25, phi4_multimodal, minicpmv4_6, llama4) + (
    qwen3_5,
    cohere2_vision,
    idefics2,
    molmo2,
    molmo2_o,
)
