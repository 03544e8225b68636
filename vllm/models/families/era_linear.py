"""Models published with code of their own whose layers remember by linear attention."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.era import known
from vllm.models.families.minimax import minimax
from vllm.models.spec import TransformerSpec

_FACTORS = {
    f"{own}_{end}_factor": f"layernorm_{theirs}_{end}"
    for own, theirs in (("full_attn", "full_attention"), ("linear_attn", "linear_attention"), ("mlp", "mlp"))
    for end in ("alpha", "beta")
}


def minimax_text(config: Any) -> TransformerSpec:
    """MiniMax under the names it was published with: text 01, m1."""
    _check_minimax(config)
    ones = dict.fromkeys(_FACTORS.values(), 1)
    config = known(SimpleNamespace(**{"sliding_window": None, **ones, **vars(config)}), **_FACTORS)
    config.layer_types = ["full_attention" if kind else "linear_attention" for kind in config.attn_type_list]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    config.rope_parameters["partial_rotary_factor"] = getattr(config, "rotary_dim", head_dim) / head_dim
    return minimax(config)


def _check_minimax(config: Any) -> None:
    if not getattr(config, "postnorm", False):
        raise ModelError("postnorm=False: branches that are not added to what norms have made are not supported")
    if shared := getattr(config, "shared_intermediate_size", 0):
        raise ModelError(
            f"shared_intermediate_size={shared}: a network beside the experts is not supported; it is 0 in MiniMax's"
        )
    if (heads := config.num_attention_heads) & (heads - 1):
        raise ModelError(f"num_attention_heads={heads}: how fast so many heads forget is not known; use a power of 2")
