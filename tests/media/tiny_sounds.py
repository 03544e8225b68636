"""Tiny checkpoints of models that hear."""

from __future__ import annotations

from typing import Any

import transformers

from tests.media.tiny import Maker

ENCODER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_mel_bins": 16,
    "max_source_positions": 100,
}


def qwen2_audio(maker: Maker) -> tuple[Any, Any]:
    sounds = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2, n_fft=400, hop_length=160)
    audio = {"model_type": "qwen2_audio_encoder", "d_model": 64, "encoder_layers": 2, "encoder_attention_heads": 4}
    audio |= {"encoder_ffn_dim": 96, "num_mel_bins": 16, "max_source_positions": 100}
    config = transformers.Qwen2AudioConfig(
        audio_config=audio,
        text_config=maker.text("qwen2"),
        audio_token_index=maker.id("<|AUDIO|>"),
        architectures=["Qwen2AudioForConditionalGeneration"],
    )
    return config, transformers.Qwen2AudioProcessor(sounds, maker.tokenizer)


def granite_speech(maker: Maker) -> tuple[Any, Any]:
    sounds = transformers.GraniteSpeechFeatureExtractor()
    encoder = {"input_dim": 160, "hidden_dim": 32, "num_layers": 2, "num_heads": 2, "output_dim": 12}
    encoder |= {"context_size": 20, "max_pos_emb": 32, "conv_kernel_size": 5}
    former = {"model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    former |= {"intermediate_size": 48, "encoder_hidden_size": 32, "cross_attention_frequency": 1}
    config = transformers.GraniteSpeechConfig(
        text_config=maker.text("granite", embedding_multiplier=3.0),
        encoder_config=encoder,
        projector_config=former,
        audio_token_index=maker.id("<|audio|>"),
        has_lora_adapter=False,
        tie_word_embeddings=False,
        architectures=["GraniteSpeechForConditionalGeneration"],
    )
    return config, transformers.GraniteSpeechProcessor(sounds, maker.tokenizer)


def voxtral(maker: Maker) -> tuple[Any, Any]:
    """With the extractor for a processor, as transformers' needs another package's tokenizer."""
    config = transformers.VoxtralConfig(
        audio_config={"model_type": "voxtral_encoder", **ENCODER, "intermediate_size": 256},
        text_config=maker.text("llama"),
        audio_token_id=maker.id("[AUDIO]"),
        architectures=["VoxtralForConditionalGeneration"],
    )
    return config, transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2, n_fft=400, hop_length=160)


SOUNDS = (qwen2_audio, granite_speech)
