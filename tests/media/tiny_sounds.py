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


SOUNDS = (qwen2_audio,)
