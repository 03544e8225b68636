"""The second way: Tidal as a module of vllm's layers.

For what a spec has no word for.  A layer that holds weights says what they are called in the checkpoint, so there is no code
that loads; a block is a module of your own, whose `forward` gets the tokens of all requests of a step, one after another.
"""

from typing import Any

from torch import Tensor, nn

from vllm import ops
from vllm.layers.attention import Attention
from vllm.layers.embedding import Embedding, Head, TokenInput
from vllm.layers.linear import Linear, Part
from vllm.layers.mlp import Mlp
from vllm.layers.norm import RmsNorm
from vllm.layers.placement import Placement
from vllm.layers.rotary import Rope, Rotary, Unstretched
from vllm.layers.step import Step
from vllm.layers.transformer import Transformer
from vllm.ops.attention import AttentionOptions


class TidalBlock(nn.Module):
    """Attention and feed-forward read the same input.  [T, D] -> [T, D]"""

    def __init__(self, index: int, config: Any, placement: Placement, rotary: Rotary) -> None:
        super().__init__()
        name = f"tidal.layers.{index}"
        outer, inner = config.hidden_size, config.intermediate_size
        self.attention_norm = RmsNorm(outer, f"{name}.attention_norm", placement, config.norm_eps)
        self.mlp_norm = RmsNorm(outer, f"{name}.mlp_norm", placement, config.norm_eps)
        self.attention = _attention(index, config, placement, rotary)
        self.mlp = Mlp(
            Linear(outer, [Part(f"{name}.mlp.up", inner)], placement, bias=True, activation="relu2"),
            Linear(inner, [Part(f"{name}.mlp.down", outer)], placement),
        )

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return ops.add(self.attention(self.attention_norm(x), step, x), self.mlp(self.mlp_norm(x)))


class TidalLayersForCausalLM(Transformer):
    """Tidal for sequences of up to `max_model_len` tokens; `placement` says of which dtype it is, and where."""

    def __init__(self, config: Any, placement: Placement, max_model_len: int) -> None:
        width = config.hidden_size // config.num_attention_heads
        rotary = Rotary(Rope(config.rotary_base, width, Unstretched()), max_model_len, placement.device)
        tokens = Embedding(config.vocab_size, config.hidden_size, "tidal.embed", placement)
        vocabulary = Linear(config.hidden_size, [Part("lm_head", config.vocab_size)], placement)
        super().__init__(
            TokenInput(tokens, scale=1.0),
            [TidalBlock(index, config, placement, rotary) for index in range(config.num_hidden_layers)],
            RmsNorm(config.hidden_size, "tidal.norm", placement, config.norm_eps),
            Head(nn.Identity(), vocabulary, softcap=0.0),
            ignored_names=(),
            base_prefix="tidal.",
        )


def _attention(index: int, config: Any, placement: Placement, rotary: Rotary) -> Attention:
    name = f"tidal.layers.{index}.attention"
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    rows = {"q": heads * width, "k": kv_heads * width, "v": kv_heads * width}
    qkv = Linear(config.hidden_size, [Part(f"{name}.{part}", count) for part, count in rows.items()], placement)
    out = Linear(heads * width, [Part(f"{name}.out", config.hidden_size)], placement)
    return Attention(
        index,
        (heads, kv_heads, width),
        (qkv, out),
        normalize=(nn.Identity(), nn.Identity()),
        rotary=rotary,
        options=AttentionOptions(width**-0.5),
    )
