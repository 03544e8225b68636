"""Nemotron-h puzzle: nemotron-h, each block of which has sizes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.mamba import NEMOTRON_NAMES, nemotron_decoder, nemotron_layer
from vllm.models.spec import LayerSpec, TransformerSpec

NAMES: Mapping[str, str] = {role: name.replace("backbone.", "model.", 1) for role, name in NEMOTRON_NAMES.items()}
_KINDS = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp", "moe": "moe"}
_SIZES: Mapping[str, frozenset[str]] = {
    "mamba": frozenset({"ssm_state_size"}),
    "attention": frozenset(),
    "mlp": frozenset({"intermediate_size"}),
    "moe": frozenset(
        {
            "n_routed_experts",
            "num_experts_per_tok",
            "moe_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "moe_latent_size",
            "routed_scaling_factor",
            "n_group",
            "topk_group",
            "norm_topk_prob",
        }
    ),
}
"""What a kind of blocks can have of its own"""


def nemotron_h_puzzle(config: Any) -> TransformerSpec:
    """What a block says of itself goes before what the config says of all."""
    known = SimpleNamespace(**{"moe_latent_size": None, "tie_word_embeddings": False, **vars(config)})
    spec = nemotron_decoder(known, [_layer(known, block) for block in config.block_configs])
    return replace(spec, names=NAMES, base_prefix="model.")


def _layer(config: Any, block: Mapping[str, Any]) -> LayerSpec:
    kind, own = block["block_type"], {name: value for name, value in block.items() if value is not None}
    del own["block_type"]
    if kind not in _KINDS:
        raise ModelError(f"block_type={kind!r} is not supported; use one of {', '.join(_KINDS)}")
    if foreign := own.keys() - _SIZES[kind]:
        name = min(foreign)
        raise ModelError(
            f"{name}={own[name]!r} of a block of {kind} is not supported; leave it out where it changes nothing"
        )
    return nemotron_layer(SimpleNamespace(**{**vars(config), **own}), _KINDS[kind])
