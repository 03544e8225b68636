"""Tidal in transformers, as somebody would publish it with a checkpoint: what the definitions for vllm are measured by."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class TidalConfig(PretrainedConfig):
    model_type = "tidal"

    vocab_size: int = 257
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    max_position_embeddings: int = 256
    rotary_base: float = 10000.0
    norm_eps: float = 1e-6


class Attention(nn.Module):
    def __init__(self, config: TidalConfig) -> None:
        super().__init__()
        self.width = config.hidden_size // config.num_attention_heads
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.base = config.rotary_base
        kv_width = self.width * config.num_key_value_heads
        self.q = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.width)).transpose(1, 2) for project in (self.q, self.k, self.v))
        q, k = self.rotate(q), self.rotate(k)
        k, v = (tensor.repeat_interleave(self.group, dim=1) for tensor in (k, v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def rotate(self, x: Tensor) -> Tensor:
        half = self.width // 2
        frequencies = self.base ** (-torch.arange(half, device=x.device) / half)
        angles = torch.arange(x.shape[-2], device=x.device)[:, None] * frequencies
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Mlp(nn.Module):
    def __init__(self, config: TidalConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(x)).square())


class Layer(nn.Module):
    def __init__(self, config: TidalConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.attention_norm(x)) + self.mlp(self.mlp_norm(x))


class Tidal(nn.Module):
    def __init__(self, config: TidalConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TidalForCausalLM(PreTrainedModel):
    config_class = TidalConfig
    base_model_prefix = "tidal"

    def __init__(self, config: TidalConfig) -> None:
        super().__init__(config)
        self.tidal = Tidal(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.tidal(input_ids)))
