"""From the spec of latent attention to a module; a part of `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from vllm.layers.latent import Expansion, LatentAttention
from vllm.layers.linear import Part
from vllm.layers.norm import RmsNorm
from vllm.models.spec import LatentSpec
from vllm.ops.attention import AttentionOptions

if TYPE_CHECKING:
    from vllm.models.build import Builder, Index


def build_latent(builder: Builder, index: Index, mixer: LatentSpec) -> LatentAttention:
    """Make a layer's attention."""
    width, queries = builder.spec.width, mixer.heads * (mixer.plain + mixer.rotated)

    def norm(role: str, size: int) -> RmsNorm:
        return RmsNorm(size, builder.name(role, index), builder.placement, mixer.norm_eps)

    query: nn.Module = nn.Identity()
    if mixer.query_rank:
        query = nn.Sequential(
            builder.linear(width, [Part(builder.name("q_a", index), mixer.query_rank)], mixer.bias),
            norm("q_a_norm", mixer.query_rank),
            builder.linear(mixer.query_rank, [Part(builder.name("q_b", index), queries)], False),
        )
    else:
        query = builder.linear(width, [Part(builder.name("q", index), queries)], False)
    sizes = (mixer.heads, mixer.plain, mixer.value, mixer.latent)
    return LatentAttention(
        builder.next_cache(),
        (mixer.heads, mixer.plain, mixer.rotated),
        query,
        (
            builder.linear(width, [Part(builder.name("kv_a", index), mixer.latent + mixer.rotated)], mixer.bias),
            norm("kv_a_norm", mixer.latent),
            Expansion(sizes, builder.name("kv_b", index), builder.placement, mixer.latent_scale),
        ),
        builder.linear(mixer.heads * mixer.value, [builder.branch_end("o", index)], mixer.bias),
        rotary=builder.rotary(mixer.rope),
        options=AttentionOptions(mixer.scale),
    )
