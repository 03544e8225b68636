"""Read a model folder's config.json into a configuration, and generation_config.json into a dict.

The configuration has the attributes that transformers' has; where all is as usual, transformers is not needed for it
(`plain_config`).

Overrides are merged into the file's content before the configuration is built, so that whatever transformers derives
from it (head sizes, layer types, rope tables) follows them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.errors import ConfigError, ModelError, did_you_mean
from vllm.loader.foreign_config import translated
from vllm.loader.plain_config import PlainConfig, plain_config
from vllm.loader.published import as_published

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Overrides = Mapping[str, Any] | Callable[["PretrainedConfig"], "PretrainedConfig"]

# transformers takes these on construction though its classes no longer declare them.
_LEGACY_NAMES = ("rope_theta", "rope_scaling", "torch_dtype")
# What people put into a configuration for engines like this one.
_ENGINE_NAMES = (
    "classifier_from_token",
    "is_original_qwen3_reranker",
    "is_causal",
    "is_matryoshka",
    "matryoshka_dimensions",
    "method",  # how tokens become classes
)
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


@dataclass(frozen=True, slots=True)
class _Code:
    """Python code that comes with a model: may it run, and which revision where it is in a repository of its own."""

    trusted: bool
    revision: str | None


def read_config(
    path: Path,
    *,
    trust_remote_code: bool = False,
    code_revision: str | None = None,
    hf_overrides: Overrides | None = None,
    own_architectures: Collection[str] = (),
    by_transformers: bool = False,
) -> PretrainedConfig | PlainConfig:
    """Return the configuration of the model in the folder `path`.

    `hf_overrides` is a mapping that is merged into config.json, or a function from the configuration to a changed
    one.  With `trust_remote_code` a configuration class that comes with the model is used where transformers has none; it
    may lie in another repository, of which `code_revision` is taken.  A model type that nobody knows is taken as it stands
    for one of `own_architectures`: the configuration has the file's entries as attributes.  `by_transformers`: it is always
    of transformers' class.
    Raises ModelError if the file is missing, damaged or not understood, ConfigError for an override without effect.
    """
    raw = as_published(translated(_read_model_json(path)), path)
    plain = None if hf_overrides or by_transformers else plain_config(raw, path)
    config = plain or _config_of_transformers(
        path, raw, hf_overrides, _Code(trust_remote_code, code_revision), own_architectures
    )
    if not getattr(config, "architectures", None):
        raise ModelError(
            f"{path}/config.json names no `architectures`; add the model's class name, "
            "for instance with hf_overrides={'architectures': ['LlamaForCausalLM']}"
        )
    return config


def dtype_of(config: PretrainedConfig | PlainConfig) -> str | None:
    """Return the name of the dtype that a checkpoint says it is stored in, or None."""
    if isinstance(config, PlainConfig):
        return config.dtype_name
    dtype = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")


def read_generation_config(path: Path) -> dict[str, Any]:
    """Return the content of generation_config.json; an empty dict if the model comes without one."""
    file = path / "generation_config.json"
    return _read_object(file) if file.exists() else {}


def _config_of_transformers(
    path: Path, raw: dict[str, Any], hf_overrides: Overrides | None, code: _Code, own: Collection[str]
) -> PretrainedConfig:
    """Have the configuration made by the class of its model type, and changed by overrides."""
    overrides = dict(hf_overrides) if isinstance(hf_overrides, Mapping) else {}
    model_type = overrides.get("model_type", raw.get("model_type"))
    architectures = overrides.get("architectures", raw.get("architectures")) or ()
    config_class = _config_class(path, raw, model_type, code, own=not set(own).isdisjoint(architectures))
    config = _build(path, config_class, _merged(raw, overrides, config_class, "hf_overrides"))
    return hf_overrides(config) if callable(hf_overrides) else config


def _read_model_json(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if file.exists():
        return _read_object(file)
    if (path / "adapter_config.json").exists():
        raise ModelError(f"{path} is an adapter, not a model; pass the model that it was trained on")
    if not path.is_dir():
        raise ModelError(f"no such directory: {path}")
    below = sorted(entry.parent.name for entry in path.glob("*/config.json"))
    hint = f"; did you mean its subfolder {below[0]}?" if below else "; a model folder has one beside its weights"
    raise ModelError(f"{path} has no config.json{hint}")


def _number(entry: dict[str, Any]) -> Any:
    """Return an infinite number, which transformers writes as an object, since JSON has none."""
    return float(entry["__float__"]) if entry.keys() == {"__float__"} else entry


def _read_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes(), object_hook=_number)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); fetch it again") from error
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds a {type(content).__name__} instead of an object; fetch it again")
    return content


def check_sizes(path: Path, value_of: Callable[[str], Any]) -> None:
    """Raise ModelError for a size that no model can have.  `value_of` knows the configuration's values by name."""
    for name in _SIZES:
        value = value_of(name)
        if isinstance(value, int) and value < 1:
            raise ModelError(f"{path}/config.json: {name}={value} must be at least 1; fetch the file again")


def _config_class(path: Path, raw: dict[str, Any], model_type: Any, code: _Code, own: bool) -> type[PretrainedConfig]:
    import transformers

    known = transformers.CONFIG_MAPPING
    if isinstance(model_type, str) and model_type in known:
        return known[model_type]
    auto_map = raw.get("auto_map")
    reference = auto_map.get("AutoConfig") if isinstance(auto_map, dict) else None
    if reference is not None and code.trusted:
        return _remote_class(path, reference, code.revision)
    if own:
        return transformers.PretrainedConfig
    if reference is not None:
        raise ModelError(
            f"{path}: the model type {model_type!r} is defined by code that comes with the model ({reference}); "
            "read that code, then pass trust_remote_code=True to run it"
        )
    if not isinstance(model_type, str):
        raise ModelError(f"{path}/config.json names no `model_type`; is it the configuration of a language model?")
    raise ModelError(
        f"{path}: the model type {model_type!r} is not known to transformers {transformers.__version__}."
        f"{did_you_mean(model_type, known)} A newer transformers may know it; an architecture of your own must be "
        "registered (ModelRegistry.register_model, or a plugin)"
    )


def _remote_class(path: Path, reference: str, revision: str | None) -> type[PretrainedConfig]:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(reference, str(path), code_revision=revision)
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(f"{path}: the model's own code {reference} cannot be loaded: {_last_line(error)}") from error


def _build(path: Path, config_class: type[PretrainedConfig], content: dict[str, Any]) -> PretrainedConfig:
    check_sizes(path, content.get)  # a class may divide by one, and would not say by which
    try:
        return config_class.from_dict({**content, "name_or_path": str(path)})
    except Exception as error:  # each class validates in its own way, with its own exceptions
        name = config_class.__name__
        raise ModelError(f"{path}/config.json is not a valid {name}: {_last_line(error)}") from error


def _merged(raw: dict[str, Any], overrides: dict[str, Any], config_class: Any, where: str) -> dict[str, Any]:
    """Return `raw` with `overrides` put in; the configurations of a multimodal model's parts are merged likewise."""
    parts = getattr(config_class, "sub_configs", {})
    merged = _without_overridden_rope(raw, overrides, where)
    for key, value in overrides.items():
        _check_declared(key, raw, config_class, where)
        if key in parts and isinstance(value, Mapping):
            value = _merged(dict(raw.get(key) or {}), dict(value), parts[key], f"{where}[{key!r}]")
        merged[key] = value
    return merged


def _check_declared(key: str, raw: dict[str, Any], config_class: Any, where: str) -> None:
    parameters = inspect.signature(config_class.__init__).parameters
    closed = hasattr(config_class, "attribute_map")  # an "auto" part takes its class from its content
    if (
        not closed
        or key in raw
        or key in parameters
        or key in (*_LEGACY_NAMES, *_ENGINE_NAMES)
        or hasattr(config_class, key)
    ):
        return
    hint = did_you_mean(key, [*raw, *parameters])
    raise ConfigError(f"{where} has {key!r}, which {config_class.__name__} does not know.{hint}")


def _without_overridden_rope(raw: dict[str, Any], overrides: dict[str, Any], where: str) -> dict[str, Any]:
    """Return `raw` without the rope entries that would win over those in `overrides`.

    A rotary embedding is written in two ways: `rope_theta` beside `rope_scaling` (old), or both in `rope_parameters`.
    transformers prefers one of them silently, and falls back to its own theta when the preferred one has none.  The
    override must win in either spelling, and the checkpoint's theta must stay unless it is overridden.
    """
    spellings = {"rope_theta", "rope_scaling", "rope_parameters"}
    if not spellings & set(overrides):
        return dict(raw)
    rope = raw.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):  # one rope per kind of layer
        if "rope_parameters" in overrides:
            return dict(raw)
        raise ConfigError(f"{where}: the model has a rope per kind of layer, {list(rope)}; override rope_parameters")
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"} or raw.get("rope_scaling")
    kept = {key: value for key, value in raw.items() if key not in spellings}
    theta = rope.get("rope_theta", raw.get("rope_theta"))
    if theta is not None:
        kept["rope_theta"] = theta
    if scaling and not {"rope_scaling", "rope_parameters"} & set(overrides):
        kept["rope_scaling"] = scaling
    return kept


def _last_line(error: Exception) -> str:
    """Return what an exception says at its end: validation errors of transformers put the cause last."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
