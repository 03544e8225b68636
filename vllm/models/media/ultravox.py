"""How Ultravox hears: whisper's encoder, of which some states in a row become one embedding.

frames ──▶ encoder ──▶ x x x x x x x x  x x … ──▶ [8 · D] ──▶ norm, linear, gate, norm, linear ──▶ embedding
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vllm.errors import ModelError


class Ear(nn.Module):
    """The tower of an UltravoxModel."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import WhisperConfig
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        audio = WhisperConfig(**config.audio_config)
        self.audio_tower = WhisperEncoder(audio)
        self.multi_modal_projector = _Projector(audio.d_model, config.text_config.hidden_size, **config.projector)

    def get_audio_features(self, input_features: Tensor, lengths: Tensor) -> Tensor:
        """Return the embeddings of a sound's windows, each of so many frames.  [W, M, F], [W] -> [n, D]"""
        return torch.cat(
            [
                self._window(window[None], length)
                for window, length in zip(input_features, lengths.tolist(), strict=True)
            ]
        )

    def _window(self, frames: Tensor, length: int) -> Tensor:
        """[1, M, F] -> [n, D]"""
        encoder, stack = self.audio_tower, self.multi_modal_projector.stack_factor
        x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(frames)))).mT
        heard = (length + 1) // 2
        places = -(-heard // stack)
        # what is stacked upon the last states is what the encoder makes of silence there, and nobody else attends to it
        x = (x + encoder.embed_positions.weight[: x.shape[1]])[:, : places * stack]
        unheard = torch.arange(x.shape[1], device=x.device) >= heard
        mask = torch.zeros(x.shape[1], dtype=x.dtype, device=x.device).masked_fill(unheard, torch.finfo(x.dtype).min)
        for layer in encoder.layers:
            x = layer(x, mask.expand(1, 1, x.shape[1], -1))
        x = F.pad(encoder.layer_norm(x)[0], (0, 0, 0, places * stack - x.shape[1]))
        found: Tensor = self.multi_modal_projector(x.reshape(places, -1))
        return found


class _Projector(nn.Module):
    """[n, stack · E] -> [n, D]"""

    def __init__(
        self, audio_width: int, text_width: int, width: int, stack_factor: int, act: str, norm_in_middle: bool
    ) -> None:
        super().__init__()
        from transformers.activations import ACT2FN

        self.stack_factor = stack_factor
        if act != "swiglu" and act not in ACT2FN:
            raise ModelError(f"projector_act={act!r} is not known; it is swiglu, or one of {', '.join(ACT2FN)}")
        self.act = _second_gates_first if act == "swiglu" else ACT2FN[act]
        middle = width // 2 if act == "swiglu" else width
        self.ln_pre = _norm(audio_width * stack_factor)
        self.linear_1 = nn.Linear(audio_width * stack_factor, width, bias=False)
        self.ln_mid = _norm(middle) if norm_in_middle else nn.Identity()
        self.linear_2 = nn.Linear(middle, text_width, bias=False)
        self.ln_post = nn.Identity() if norm_in_middle else _norm(text_width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_mid(self.act(self.linear_1(self.ln_pre(x))))
        found: Tensor = self.ln_post(self.linear_2(x))
        return found


def _norm(width: int) -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    return LlamaRMSNorm(width, eps=1e-6)


def _second_gates_first(x: Tensor) -> Tensor:
    """[n, 2 M] -> [n, M]"""
    value, gate = x.chunk(2, dim=-1)
    return value * F.silu(gate)
