"""How MiniCPM-o hears: whisper's encoder, in which a second's states see those before it, and two of them become one embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm.models.media.minicpm_v import Eye


class EyeAndEar(Eye):
    """The tower of a MiniCPMO."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        audio, width = WhisperConfig(**config.audio_config), config.text_config.hidden_size
        self.apm = WhisperEncoder(audio)
        self.audio_projection_layer: Any = nn.Module()
        self.audio_projection_layer.linear1 = nn.Linear(audio.encoder_ffn_dim // 4, width)
        self.audio_projection_layer.linear2 = nn.Linear(width, width)
        self.chunk, self.pooled = config.audio_chunk, config.audio_pool_step

    def get_audio_features(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings of a sound's pieces, each of so many frames.  [W, M, F], [W] -> [n, D]"""
        return torch.cat(
            [self._piece(piece[None], length) for piece, length in zip(input_features, lengths.tolist(), strict=True)]
        )

    def _piece(self, frames: Tensor, length: int) -> Tensor:
        """[1, M, F] -> [n, D]"""
        project, count = self.audio_projection_layer, (length + 1) // 2
        x = functional.gelu(self.apm.conv2(functional.gelu(self.apm.conv1(frames)))).mT
        x = (x + self.apm.embed_positions.weight[: x.shape[1]])[:, : -(-count // self.chunk) * self.chunk]
        mask = self._mask(x, length)
        for layer in self.apm.layers:
            x = layer(x, mask)
        x = project.linear2(functional.relu(project.linear1(self.apm.layer_norm(x))))
        return functional.avg_pool1d(x.mT, self.pooled).mT[0, : count // self.pooled]

    def _mask(self, x: Tensor, length: int) -> Tensor:
        """Return what is added to scores.  -> [1, 1, n, n]

        A state sees all until its second is over, even silence behind the sound's end, as long as that is in front of twice as much.
        """
        place = torch.arange(x.shape[1], device=x.device)
        is_seen = (place // self.chunk <= place[:, None] // self.chunk) & (place < length)
        return torch.zeros_like(is_seen, dtype=x.dtype).masked_fill(~is_seen, torch.finfo(x.dtype).min)[None, None]
