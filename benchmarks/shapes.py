"""The numbers of a model that its cost follows from, and of the precisions that it is run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the llama family whose output head is its token embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    rope_theta: float = 1e6
    max_positions: int = 32768

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def body_weights(self) -> int:
        """Weights of the layers' products, which every token passes through."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, which only tokens pass through whose next token somebody waits for."""
        return self.vocab * self.hidden

    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
        }


QWEN_HALF_BILLION = Shape(hidden=896, layers=24, heads=14, kv_heads=2, intermediate=4864, vocab=151936)
"""The shape of Qwen2.5-0.5B."""


@dataclass(frozen=True, slots=True)
class Precision:
    """What weights are kept in, and the arithmetic that goes with it."""

    name: str
    weight_bytes: float
    arithmetic: str
    """Which rate of the machine bounds it: bf16 or int8."""


PRECISIONS = {
    each.name: each
    for each in (
        Precision("bf16", 2.0, "bf16"),
        Precision("int8", 34 / 32, "int8"),  # groups of 32 with a scale of 16 bits, as in Q8_0
        Precision("int4", 18 / 32, "int8"),  # the same of 4 bits, as in Q4_0; activations are of 8 bits
    )
}
"""A comparison stays within one of these."""
