"""Read what a folder of sentence-transformers says beside the model: how hidden states become an embedding.

modules.json                       0 Transformer ─▶ 1 Pooling ─▶ 2 Dense … ─▶ 3 Normalize
1_Pooling/config.json              which hidden states count
2_Dense/config.json + weights      a projection
sentence_bert_config.json          the longest prompt, whether texts are lowered
config_sentence_transformers.json  texts that go before a prompt, the activation of scores, how embeddings are compared

Both ways to write them are read: classes of `sentence_transformers.models` with a switch per pooling mode, and those of
the packages that followed, with the modes by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.errors import ModelError

_MODES = {
    "cls": "CLS",
    "max": "MAX",
    "mean": "MEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "weightedmean": "WEIGHTED_MEAN",
    "lasttoken": "LAST",
}
"""A pooling mode of theirs → ours, in the order in which results of several are joined."""
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""A switch of older files → the mode."""
_ACTIVATIONS = {"Identity": None, "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "Sigmoid": "sigmoid", "SiLU": "silu"}
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_KINDS = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout", "LogitScore")
_TRANSFORMER_FILES = "sentence_*_config.json"
"""One of these holds the first module's options; its name depends on the model the folder was made from."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A projection of the pooled vector, stored as `name`/model.safetensors: linear.weight, linear.bias."""

    name: str
    rows: int
    width: int
    bias: bool
    activation: str | None


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm of the pooled vector, stored as `name`/model.safetensors: norm.weight, norm.bias."""

    name: str


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """What the files say."""

    root: Path
    """The folder with modules.json."""
    pooling_types: tuple[str, ...]
    """Results of several are joined; without any there is no pooling module."""
    modules: tuple[Dense | Norm, ...]
    """With weights, in their order."""
    normalize: bool
    label_tokens: tuple[int, ...]
    """The score is the logit of the last of these tokens, less that of the first if there are two."""
    options: Options


@dataclass(frozen=True, slots=True)
class Options:
    """What the files say that is no module."""

    max_length: int | None = None
    lower_case: bool = False
    """Texts are lowered before they are tokenized."""
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str | None = None
    activation: str | None = None
    """Of scores: "sigmoid", "softmax", "none", or None if nothing is said."""
    similarity: str | None = None


@dataclass(slots=True)
class _Chain:
    """The modules as they are read."""

    pooling_types: tuple[str, ...] = ()
    modules: list[Dense | Norm] = field(default_factory=list)
    normalize: bool = False
    label_tokens: tuple[int, ...] = ()


def read_sentence_transformer(folder: Path) -> SentenceTransformer | None:
    """Return what sentence-transformers' files in a folder say; None if there are none.

    Very old ones keep the transformer in a folder of its own, below that of modules.json.  Raises ModelError for a module
    that is not known.
    """
    modules, root = _modules(folder), folder
    if not modules and (above := _modules(folder.parent)) and above[0] == ("Transformer", folder.name):
        modules, root = above, folder.parent
    settings = _object(root / "config_sentence_transformers.json")
    if not modules and not settings:
        return None
    options = _options(folder, settings)
    chain = _Chain()
    for kind, path in modules:
        if chain.normalize and kind in ("Dense", "LayerNorm"):
            raise ModelError(f"{root}/modules.json: a {kind} behind Normalize is not supported")
        _take(chain, kind, root, path, options)
    return SentenceTransformer(
        root, chain.pooling_types, tuple(chain.modules), chain.normalize, chain.label_tokens, options
    )


def module_folders(folder: Path) -> list[str]:
    """Return the folders of the modules beside the transformer, as modules.json names them."""
    return [path for _, path in _modules(folder) if path]


def activation_of(name: str | None) -> str | None:
    """Return the activation of scores that a class of torch's stands for; None if no class is named."""
    if not name:
        return None
    return {"Sigmoid": "sigmoid", "Softmax": "softmax"}.get(name.rpartition(".")[2], "none")


def module_weights(root: Path, module: Dense | Norm) -> Path:
    """Return the file with a module's weights.  Raises ModelError if there is none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (root / module.name / name).is_file():
            return root / module.name / name
    raise ModelError(f"{root / module.name} has no model.safetensors or pytorch_model.bin; download the model again")


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
        if kind not in _KINDS:
            raise ModelError(f"{file} has a module of the kind {kind!r}; only {', '.join(_KINDS)} are supported")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"{file} names {path!r}, which is not a folder of its own")
    return found


def _options(folder: Path, settings: dict[str, Any]) -> Options:
    first = next(iter(sorted(folder.glob(_TRANSFORMER_FILES))), folder / "sentence_bert_config.json")
    transformer = _object(first)
    texts = settings.get("prompts") or {}
    similarity = settings.get("similarity_fn_name")
    if similarity not in (None, *_SIMILARITIES):
        raise ModelError(f"similarity_fn_name={similarity!r} is not supported; one of {', '.join(_SIMILARITIES)} is")
    return Options(
        max_length=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case")),
        prompts=tuple((name, text) for name, text in texts.items() if isinstance(text, str)),
        default_prompt=settings.get("default_prompt_name"),
        activation=activation_of(settings.get("activation_fn")),
        similarity=similarity,
    )


def _take(chain: _Chain, kind: str, root: Path, path: str, options: Options) -> None:
    """Book one module."""
    file = root / path / "config.json"
    if kind == "Pooling":
        chain.pooling_types = _pooling_types(file, any(text for _, text in options.prompts))
    elif kind == "Dense":
        chain.modules.append(_dense(file, path))
    elif kind == "LayerNorm":
        chain.modules.append(Norm(path))
    elif kind == "Normalize":
        chain.normalize = True
    elif kind == "LogitScore":
        chain.label_tokens = _label_tokens(file)


def _pooling_types(file: Path, has_prompts: bool) -> tuple[str, ...]:
    config = _required(file)
    modes = config.get("pooling_mode")
    if isinstance(modes, str):
        modes = [modes]
    if not isinstance(modes, list):  # older files have a switch for each
        switched = {key for key, value in config.items() if key.startswith("pooling_mode_") and value is True}
        modes = [mode for switch, mode in _SWITCHES.items() if switch in switched]
        modes += sorted(switched.difference(_SWITCHES))
    if unknown := [mode for mode in modes if mode not in _MODES]:
        raise ModelError(f"{file}: the pooling mode {unknown[0]!r} is not supported; {', '.join(_MODES)} are")
    if config.get("include_prompt") is False and has_prompts:
        raise ModelError(f"{file}: include_prompt=false, pooling without the prompt's tokens, is not supported")
    return tuple(_MODES[mode] for mode in modes) or ("MEAN",)


def _dense(file: Path, path: str) -> Dense:
    config = _required(file)
    name = str(config.get("activation_function", "Tanh")).rpartition(".")[2]
    if name not in _ACTIVATIONS:
        raise ModelError(f"{file}: the activation {name} is not supported; {', '.join(_ACTIVATIONS)} are")
    if config.get("use_residual"):
        raise ModelError(f"{file}: use_residual=true is not supported")
    try:
        return Dense(
            path, config["out_features"], config["in_features"], bool(config.get("bias", True)), _ACTIVATIONS[name]
        )
    except KeyError as error:
        raise ModelError(f"{file} lacks {error}; fetch it again") from error


def _label_tokens(file: Path) -> tuple[int, ...]:
    config = _required(file)
    ids = (config.get("false_token_id"), config.get("true_token_id"))
    if not isinstance(ids[1], int):
        raise ModelError(f"{file} lacks 'true_token_id'; fetch it again")
    return tuple(token for token in ids if isinstance(token, int))


def _required(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file}, which modules.json speaks of, is not there; download the model again")
    return _object(file)


def _object(file: Path) -> dict[str, Any]:
    """Return a file's object; an empty one if there is no file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON ({error}); fetch it again") from error
    return content if isinstance(content, dict) else {}
