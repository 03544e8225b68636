"""Models of nothing but state spaces: mamba, falcon_mamba, mamba2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.errors import ModelError
from vllm.models.spec import EntrySpec, LayerSpec, Mamba2Spec, MambaSpec, Mixer, NormSpec, TransformerSpec

_MIXER = "backbone.layers.{i}.mixer"
NAMES: Mapping[str, str] = {
    "embed": "backbone.embeddings",
    "norm": "backbone.norm_f",
    "head": "lm_head",
    "norm1": "backbone.layers.{i}.norm",
    "enter": f"{_MIXER}.in_proj",
    "conv": f"{_MIXER}.conv1d",
    "select": f"{_MIXER}.x_proj",
    "spread": f"{_MIXER}.dt_proj",
    "mixer_norm": f"{_MIXER}.norm",
    "leave": f"{_MIXER}.out_proj",
    "a_log": f"{_MIXER}.A_log",
    "skip": f"{_MIXER}.D",
    "dt_bias": f"{_MIXER}.dt_bias",
}


def mamba(config: Any) -> TransformerSpec:
    """A convolution and a state space in each layer."""
    return _states(config, _mamba(config))


def falcon_mamba(config: Any) -> TransformerSpec:
    """Mamba with norms on what its state space is told."""
    return _states(config, replace(_mamba(config), norm="plain", norm_eps=config.mixer_rms_eps))


def mamba2(config: Any) -> TransformerSpec:
    """A convolution and a state space with heads in each layer."""
    if tuple(config.time_step_limit) != (0.0, float("inf")):
        raise ModelError(
            f"time_step_limit={config.time_step_limit}: limited time steps are not supported; "
            "use model_impl='transformers'"
        )
    mixer = Mamba2Spec(
        config.num_heads,
        config.head_dim,
        config.n_groups,
        config.state_size,
        config.conv_kernel,
        config.hidden_act,
        config.use_bias,
        config.use_conv_bias,
    )
    return _states(config, mixer)


def _mamba(config: Any) -> MambaSpec:
    return MambaSpec(
        config.intermediate_size,
        config.state_size,
        config.conv_kernel,
        config.time_step_rank,
        config.hidden_act,
        config.use_bias,
        config.use_conv_bias,
    )


def _states(config: Any, mixer: Mixer) -> TransformerSpec:
    return TransformerSpec(
        EntrySpec(config.vocab_size),
        config.hidden_size,
        (LayerSpec(mixer, None, "single"),) * config.num_hidden_layers,
        NormSpec("rms", config.layer_norm_epsilon),
        NAMES,
        config.tie_word_embeddings,
        base_prefix="backbone.",
    )
