"""The first way: Tidal as data.  The engine makes its modules, fills them and has kernels for them."""

from typing import Any

from vllm.layers.rotary import Rope, Unstretched
from vllm.models.spec import AttentionSpec, EntrySpec, LayerSpec, MlpSpec, NormSpec, TransformerSpec

NAMES = {
    "embed": "tidal.embed",
    "norm": "tidal.norm",
    "head": "lm_head",
    "norm1": "tidal.layers.{i}.attention_norm",
    "norm2": "tidal.layers.{i}.mlp_norm",
    "q": "tidal.layers.{i}.attention.q",
    "k": "tidal.layers.{i}.attention.k",
    "v": "tidal.layers.{i}.attention.v",
    "o": "tidal.layers.{i}.attention.out",
    "up": "tidal.layers.{i}.mlp.up",
    "down": "tidal.layers.{i}.mlp.down",
}
"""A part of the model → the name of its tensor in the checkpoint, without .weight and .bias."""


def tidal(config: Any) -> TransformerSpec:
    """Attention and feed-forward read the same input, each through a norm of its own."""
    width = config.hidden_size // config.num_attention_heads
    attention = AttentionSpec(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=width,
        scale=width**-0.5,
        rope=Rope(config.rotary_base, width, Unstretched()),
    )
    mlp = MlpSpec(config.intermediate_size, "relu2", gated=False, up_bias=True)
    return TransformerSpec(
        entry=EntrySpec(config.vocab_size),
        width=config.hidden_size,
        layers=(LayerSpec(attention, mlp, block="parallel"),) * config.num_hidden_layers,
        norm=NormSpec("rms", config.norm_eps),
        names=NAMES,
        tied=False,
        base_prefix="tidal.",
    )
