"""Read what a folder of sentence-transformers says beside the model: how hidden states become an embedding.

modules.json                       0 Transformer ─▶ 1 Pooling ─▶ 2 Dense … ─▶ 3 Normalize
1_Pooling/config.json              which hidden states count
2_Dense/config.json + weights      a projection
sentence_bert_config.json          the longest prompt
config_sentence_transformers.json  texts that go before a prompt, the activation of scores
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.errors import ModelError

_MODES = {
    "cls": "CLS",
    "lasttoken": "LAST",
    "mean": "MEAN",
    "max": "MAX",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "weightedmean": "WEIGHTED_MEAN",
}
"""A pooling mode of theirs → ours."""
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid", "SiLU": "silu"}


@dataclass(frozen=True, slots=True)
class Dense:
    """A projection of the pooled vector, stored as `name`/model.safetensors: linear.weight, linear.bias."""

    name: str
    rows: int
    width: int
    bias: bool
    activation: str | None


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """What the files say."""

    pooling_type: str | None
    """None: there is no pooling module."""
    dense: tuple[Dense, ...]
    normalize: bool
    max_length: int | None
    prompts: tuple[tuple[str, str], ...]
    default_prompt: str | None
    activation: str | None
    """Of scores: "sigmoid", "none", or None if nothing is said."""


def read_sentence_transformer(folder: Path) -> SentenceTransformer | None:
    """Return what sentence-transformers' files in a folder say; None if there are none.

    Raises ModelError for a module that is not known.
    """
    modules = _modules(folder)
    settings = _object(folder / "config_sentence_transformers.json")
    if not modules and not settings:
        return None
    pooling = [path for kind, path in modules if kind == "Pooling"]
    texts = settings.get("prompts") or {}
    return SentenceTransformer(
        pooling_type=_pooling_type(folder / pooling[0] / "config.json") if pooling else None,
        dense=tuple(_dense(folder, path) for kind, path in modules if kind == "Dense"),
        normalize=any(kind == "Normalize" for kind, _ in modules),
        max_length=_object(folder / "sentence_bert_config.json").get("max_seq_length"),
        prompts=tuple((name, text) for name, text in texts.items() if isinstance(text, str)),
        default_prompt=settings.get("default_prompt_name"),
        activation=activation_of(settings.get("activation_fn")),
    )


def activation_of(name: str | None) -> str | None:
    """Return the activation of scores that a class of torch's stands for; None if no class is named."""
    if not name:
        return None
    return {"Sigmoid": "sigmoid", "Softmax": "softmax"}.get(name.rpartition(".")[2], "none")


def dense_weights(folder: Path, dense: Dense) -> Path:
    """Return the file with a projection's weights.  Raises ModelError if there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / dense.name / name).is_file():
            return folder / dense.name / name
    raise ModelError(f"{folder / dense.name} has no model.safetensors or pytorch_model.bin; download the model again")


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Return the kinds of the modules, in their order, and the paths of their folders."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    try:
        entries = sorted(json.loads(file.read_bytes()), key=lambda entry: entry["idx"])
        found = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} is damaged ({error}); fetch it again") from error
    for kind, path in found:
        if kind not in ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"):
            raise ModelError(f"{file} has a module of the kind {kind!r}, which is not supported")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"{file} names {path!r}, which is not a folder of its own")
    return found


def _pooling_type(file: Path) -> str:
    config = _object(file)
    modes = [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    for key, value in config.items():  # older files have a switch for each
        if key.startswith("pooling_mode_") and value is True:
            modes.append(key.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens"))
    known = {name.removesuffix("_tokens"): mode for name, mode in _MODES.items()} | _MODES
    if len(modes) != 1 or modes[0] not in known:
        raise ModelError(f"{file}: the pooling modes {modes} are not supported together; one of {', '.join(_MODES)} is")
    if config.get("include_prompt") is False:
        raise ModelError(f"{file}: include_prompt=false, pooling without the prompt's tokens, is not supported")
    return known[modes[0]]


def _dense(folder: Path, path: str) -> Dense:
    config = _object(folder / path / "config.json")
    name = str(config.get("activation_function", "Identity")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ModelError(f"{folder / path}: the activation {name} is not supported; {', '.join(_ACTIVATIONS)} are")
    try:
        return Dense(
            path, config["out_features"], config["in_features"], bool(config.get("bias", True)), _ACTIVATIONS[name]
        )
    except KeyError as error:
        raise ModelError(f"{folder / path}/config.json lacks {error}; fetch it again") from error


def _object(file: Path) -> dict[str, Any]:
    """Return a file's object; an empty one if there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); fetch it again") from error
    return content if isinstance(content, dict) else {}
