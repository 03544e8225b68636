"""From the rope parameters of a config to a `Rope`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from vllm.errors import ModelError, did_you_mean
from vllm.layers.rotary import DynamicNtk, Linear, Llama3, LongRope, Ntk, Proportional, Rope, Stretch, Unstretched, Yarn

Parameters = Mapping[str, Any]


def rope_of(config: Any, head_dim: int, layer_type: str | None = None) -> Rope:
    """Return the rope of the config's layers, or of those of one type where types differ."""
    parameters = config.rope_parameters
    if layer_type in parameters:
        parameters = parameters[layer_type]
    kind = parameters.get("rope_type") or "default"
    if kind not in _STRETCHES:
        known = ", ".join(_STRETCHES)
        raise ModelError(f"rope_type={kind!r} is not supported; use one of {known}.{did_you_mean(kind, _STRETCHES)}")
    share = parameters.get("partial_rotary_factor") or 1.0
    rotated = head_dim if kind == "proportional" else int(head_dim * share)
    try:
        stretch = _STRETCHES[kind](parameters, getattr(config, "max_position_embeddings", 0))
    except KeyError as missing:
        raise ModelError(f"rope_type={kind!r} needs {missing} in the rope parameters; they are {parameters}") from None
    return Rope(parameters["rope_theta"], rotated, stretch)


def _yarn(parameters: Parameters, longest: int) -> Stretch:
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or longest / original
    return Yarn(
        factor,
        original,
        parameters.get("attention_factor") or _yarn_attention_factor(parameters, factor),
        parameters.get("beta_fast") or 32.0,
        parameters.get("beta_slow") or 1.0,
        parameters.get("truncate", True),
    )


def _yarn_attention_factor(parameters: Parameters, factor: float) -> float:
    def length(multiplier: float) -> float:
        return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0

    up, down = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return length(up) / length(down) if up and down else length(1.0)


def _long_rope(parameters: Parameters, longest: int) -> Stretch:
    original = parameters["original_max_position_embeddings"]
    factor = parameters.get("factor") or longest / original
    attention_factor = parameters.get("attention_factor")
    if attention_factor is None:
        attention_factor = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    factors = tuple(parameters.get(name) or attention_factor for name in ("short_mscale", "long_mscale"))
    divisors = (tuple(parameters["short_factor"]), tuple(parameters["long_factor"]))
    return LongRope(*divisors, original, cast("tuple[float, float]", factors))


def _llama3(parameters: Parameters, longest: int) -> Stretch:
    return Llama3(
        parameters["factor"],
        parameters["low_freq_factor"],
        parameters["high_freq_factor"],
        parameters["original_max_position_embeddings"],
    )


_STRETCHES: Mapping[str, Callable[[Parameters, int], Stretch]] = {
    "proportional": lambda parameters, longest: Proportional(
        parameters.get("partial_rotary_factor") or 1.0, parameters.get("factor") or 1.0
    ),
    "default": lambda parameters, longest: Unstretched(),
    "linear": lambda parameters, longest: Linear(parameters["factor"]),
    "ntk": lambda parameters, longest: Ntk(parameters["factor"]),
    "dynamic": lambda parameters, longest: DynamicNtk(parameters["factor"], longest),
    "yarn": _yarn,
    "longrope": _long_rope,
    "llama3": _llama3,
}
