"""Configurations that can be read without transformers, whose import takes longer than all else before the weights.

`assets/configurations.json` holds what transformers' classes declare (tools/configurations.py writes it): fields with
their defaults and types.  A config.json that keeps to it has one meaning, and what is derived is derived here.  Anything
else, be it an unusual rope, an entry of another type or a mistake, is left to transformers, and so are its words.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.errors import ModelError

_DECLARED = Path(__file__).parent.parent / "assets" / "configurations.json"
_DTYPES = ("float32", "float16", "bfloat16")
# Parts of names to which transformers gives a meaning even where a class does not declare them.
_MEANINGFUL = (
    "attn",
    "coder",
    "config",
    "dtype",
    "embed",
    "expert",
    "head",
    "label",
    "layer_type",
    "original",
    "rope",
    "rotary",
)
# What has such a part in its name, or is no plain value, and still has no meaning there.
_HARMLESS = {"position_embedding_type": "str", "sentence_transformers": "dict"}
_LLAMA3_ROPE = {
    "rope_theta",
    "rope_type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}

Values = dict[str, Any]


class PlainConfig:
    """A configuration with the attributes that transformers would give it.

    What transformers' classes can do beside that is asked of them, once somebody asks for it.
    """

    def __init__(self, values: Values, content: dict[str, Any]) -> None:
        """`content` is that of config.json, with the path."""
        self.__dict__.update(values)
        self._content = content

    @property
    def dtype(self) -> Any:
        """The dtype of the checkpoint as torch has it.  Who only wants its name, `dtype_name`, needs no torch."""
        import torch

        return None if self.dtype_name is None else getattr(torch, self.dtype_name)

    def get_text_config(self, *_: Any, **__: Any) -> PlainConfig:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_content":  # copying asks for them before there is anything
            raise AttributeError(name)
        declared = _declared()
        alias = declared["types"][self._content["model_type"]]["aliases"].get(name)
        if alias is not None:
            return getattr(self, alias)
        if name in declared["members"]:
            return getattr(self._original, name)
        raise AttributeError(f"the configuration of a {self._content['model_type']} model has no {name!r}")

    def __repr__(self) -> str:
        return repr(self._original)

    @functools.cached_property
    def _original(self) -> Any:
        import transformers

        return transformers.CONFIG_MAPPING[self._content["model_type"]].from_dict(dict(self._content))


def plain_config(content: dict[str, Any], path: Path) -> PlainConfig | None:
    """Return the configuration that config.json's content means; None where transformers has to say."""
    content = {**content, "name_or_path": str(path)}
    model_type = str(content.get("model_type"))
    known = _declared()["types"].get(model_type)
    if known is None or not all(_is_plain(key, value, known) for key, value in content.items()):
        return None
    fields, dropped = known["fields"], {*_declared()["generation"], "torch_dtype", "rope_theta", "rope_scaling"}
    values = {name: default for name, (default, *_) in fields.items()}
    values |= {key: value for key, value in content.items() if key in fields or key not in dropped}
    values["dtype"] = values["dtype"] or content.get("torch_dtype")
    values["_name_or_path"] = content.get("_name_or_path", values.pop("name_or_path"))
    if values["id2label"] is None:
        values["id2label"], values["label2id"] = {0: "LABEL_0", 1: "LABEL_1"}, {"LABEL_0": 0, "LABEL_1": 1}
    else:
        values["id2label"] = {int(key): label for key, label in values["id2label"].items()}
    if not _has_sound_sizes(values):
        return None
    for derive in _DERIVED[model_type]:
        derive(values)
    if "rope_parameters" in fields:
        values["rope_parameters"] = _rope(values, content, known["rope_theta"])
    if not _is_consistent(values):
        return None
    values["dtype_name"] = values.pop("dtype")
    return PlainConfig({known["aliases"].get(name, name): value for name, value in values.items()}, content)


@functools.cache
def _declared() -> dict[str, Any]:
    try:
        return json.loads(_DECLARED.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{_DECLARED}, a file of this package, cannot be read ({error}); install it again") from error


def _is_plain(key: str, value: Any, known: dict[str, Any]) -> bool:
    """Whether an entry is as its class declares it, or one that no class looks at."""
    fields = known["fields"]
    if key in ("rope_parameters", "rope_scaling"):
        return "rope_parameters" in fields and (value is None or isinstance(value, dict))
    if key == "rope_theta":
        return _is_number(value) and "rope_parameters" in fields
    if key in ("dtype", "torch_dtype"):
        return value is None or value in _DTYPES
    if key == "id2label":
        return value is None or (isinstance(value, dict) and _are_labels(value))
    if key == "label2id":
        return value is None or (isinstance(value, dict) and {_kind(number) for number in value.values()} == {"int"})
    if key in _HARMLESS:
        return _kind(value) == _HARMLESS[key]
    if key in fields:
        return _kind(value) in fields[key][1:] or (value == [] and "list[int]" in fields[key])
    if key in ("model_type", "name_or_path", "_name_or_path"):
        return isinstance(value, str)
    if key in _declared()["generation"]:
        return True
    taken = key in _declared()["members"] or key in known["aliases"] or key in known["aliases"].values()
    is_simple = _kind(value) in ("null", "bool", "int", "float", "str", "list[int]", "list[str]")
    return is_simple and not taken and not key.startswith("_") and not any(part in key for part in _MEANINGFUL)


def _are_labels(value: Values) -> bool:
    return all(number.isdecimal() and isinstance(name, str) for number, name in value.items())


def _kind(value: Any) -> str:
    """Name a value's type as assets/configurations.json does."""
    if isinstance(value, list):
        kinds = {_kind(entry) for entry in value}
        return f"list[{kinds.pop()}]" if len(kinds) == 1 else "list"
    return "null" if value is None else type(value).__name__


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _has_sound_sizes(values: Values) -> bool:
    """Whether nothing that is derived divides by nothing, and no class finds fault with the sizes."""

    def first(*names: str) -> Any:
        return next((values[name] for name in names if name in values), 1)

    hidden, heads = first("hidden_size", "n_embd", "dim"), first("num_attention_heads", "n_heads")
    layers = first("num_hidden_layers", "n_layer", "n_layers")
    return min(hidden, heads, layers) > 0 and hidden % heads == 0 and 0.0 <= values.get("initializer_range", 0.0) <= 1.0


def _is_consistent(values: Values) -> bool:
    """Whether transformers would take the values without a word."""
    layer_types = values.get("layer_types")
    known_types = {"full_attention", "sliding_attention"}
    if layer_types is not None and (
        len(layer_types) != values["num_hidden_layers"] or not known_types.issuperset(layer_types)
    ):
        return False
    if (values.get("head_dim") or 0) % 2:
        return False
    if values.get("hidden_act") == "gelu" and values["model_type"].startswith("gemma"):  # which means another one
        return False
    tokens = [value for name, value in values.items() if name.endswith("_token_id") and isinstance(value, int)]
    if any(not 0 <= token < values["vocab_size"] for token in tokens):
        return False
    return "rope_parameters" not in values or values["rope_parameters"] is not None


def _rope(values: Values, content: dict[str, Any], default_theta: float) -> Values | None:
    """Return the rotary embedding's parameters; None for one that transformers has to look at."""
    given = content.get("rope_scaling") or content.get("rope_parameters") or {}
    rope = {"rope_theta": content.get("rope_theta", default_theta), "rope_type": "default", **given}
    if not _is_number(rope["rope_theta"]):
        return None
    if rope["rope_type"] == "default" and len(rope) == 2:
        return rope
    if rope["rope_type"] != "llama3" or set(rope) != _LLAMA3_ROPE:
        return None
    original = rope["original_max_position_embeddings"]
    factors = [rope[name] for name in ("factor", "low_freq_factor", "high_freq_factor")]
    if not all(_is_number(factor) for factor in factors) or _kind(original) != "int":
        return None
    is_sound = factors[0] >= 1 and factors[1] < factors[2] and original < values["max_position_embeddings"]
    return rope if is_sound else None


def _kv_heads(values: Values) -> None:
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]


def _head_dim(values: Values) -> None:
    if values["head_dim"] is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]


def _window(values: Values) -> None:
    """A window is off unless it is switched on."""
    if not values["use_sliding_window"]:
        values["sliding_window"] = None


def _upper_windows(values: Values) -> None:
    """The layers from `max_window_layers` on have a window, if there is one."""
    if values["layer_types"] is None:
        last = values["num_hidden_layers"] if values["sliding_window"] is None else values["max_window_layers"]
        values["layer_types"] = _layer_types(values, lambda index: index >= last)


def _alternating_windows(values: Values) -> None:
    if values["layer_types"] is None:
        values["layer_types"] = _layer_types(values, lambda index: index % 2 == 0)


def _layer_types(values: Values, has_window: Callable[[int], bool]) -> list[str]:
    layers = range(values["num_hidden_layers"])
    return ["sliding_attention" if has_window(index) else "full_attention" for index in layers]


def _dense_layers(values: Values) -> None:
    if values["mlp_only_layers"] is None:
        values["mlp_only_layers"] = []


def _embedding_width(values: Values) -> None:
    if values["word_embed_proj_dim"] is None:
        values["word_embed_proj_dim"] = values["hidden_size"]


_DERIVED: dict[str, tuple[Callable[[Values], None], ...]] = {
    "bert": (),
    "camembert": (),
    "distilbert": (),
    "electra": (),
    "gemma": (),
    "gemma2": (_alternating_windows,),
    "gpt2": (),
    "llama": (_kv_heads, _head_dim),
    "mistral": (_kv_heads, _head_dim),
    "mixtral": (_kv_heads,),
    "mpnet": (),
    "opt": (_embedding_width,),
    "qwen2": (_window, _kv_heads, _upper_windows),
    "qwen3": (_window, _kv_heads, _upper_windows),
    "qwen3_moe": (_window, _dense_layers),
    "roberta": (),
    "xlm-roberta": (),
}
