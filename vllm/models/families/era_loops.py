"""Models that pass their layers several times: nanbeige 4.2, ouro, IQuest's loop coder.  Each pass keeps its own tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.families.era import known, refuse_set
from vllm.models.families.llama import NAMES, attention_of, decoder_of, llama, mlp_of
from vllm.models.spec import LayerSpec, RecallSpec, TransformerSpec

OURO_NAMES: Mapping[str, str] = {
    **NAMES,
    "norm1_after": "model.layers.{i}.input_layernorm_2",
    "norm2_after": "model.layers.{i}.post_attention_layernorm_2",
}
LOOP_CODER_NAMES: Mapping[str, str] = {**NAMES, "recall": "model.gate_projections.{i}"}

_NANBEIGE_VARIANTS = (
    *("attention_bias", "emb_neighbor_num", "enable_depth_attention", "enable_double_loop_split"),
    *("enable_hyper_connection", "loop_loss_weights", "loop_share_kv", "qk_layernorm"),
)


def nanbeige(config: Any) -> TransformerSpec:
    """Llama whose layers are passed several times, with a norm behind each pass."""
    refuse_set(config, _NANBEIGE_VARIANTS, "a nanbeige with it is not supported; use a checkpoint without it")
    config = known(config)
    layer = LayerSpec(attention_of(config), mlp_of(config))
    normed = not getattr(config, "skip_loop_final_norm", False)
    return _passed(decoder_of(config, layer), getattr(config, "num_loops", 1), normed)


def ouro(config: Any) -> TransformerSpec:
    """Llama with norms before and behind its branches, whose layers are passed several times, with a norm behind each pass."""
    refuse_set(config, ("use_sliding_window",), "an ouro with it is not supported; use a checkpoint without it")
    if (threshold := getattr(config, "early_exit_threshold", 1.0)) < 1:
        raise ModelError(
            f"early_exit_threshold={threshold}: tokens that leave before the last pass are not supported; use 1.0"
        )
    config = known(config)
    layer = LayerSpec(attention_of(config), mlp_of(config), "sandwich")
    spec = decoder_of(config, layer, names=OURO_NAMES, ignored_names=("*.inv_freq", "model.early_exit_gate.*"))
    return _passed(spec, getattr(config, "total_ut_steps", 4), normed=True)


def loop_coder(config: Any) -> TransformerSpec:
    """Llama whose layers are passed several times; behind the first pass each has a window, and attends to its first pass too."""
    config = known(config)
    spec = _passed(replace(llama(config), names=LOOP_CODER_NAMES), getattr(config, "loop_num", 2), normed=False)
    count, window = config.num_hidden_layers, getattr(config, "loop_window_size", 64)
    own = replace(spec.layers[0].attention, window=window)
    again = (replace(layer, mixer=RecallSpec(own, i % count)) for i, layer in enumerate(spec.layers[count:]))
    return replace(spec, layers=(*spec.layers[:count], *again))


def _passed(spec: TransformerSpec, passes: int, normed: bool) -> TransformerSpec:
    """Let layers be passed so many times, with or without the last norm between two passes."""
    *layers, last = spec.layers
    again = (*layers, replace(last, normed=normed)) * (passes - 1)
    return replace(spec, layers=(*again, *spec.layers), stored_layers=len(spec.layers))
