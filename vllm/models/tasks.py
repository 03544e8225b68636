"""What a model is for: what its architecture, its folder and the user say, settled.  Needs no torch.

architecture ─┐
modules.json ─┼─▶ Pooling, or None for a model that generates
user ─────────┘
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from vllm.errors import ConfigError
from vllm.loader.sentence_transformers import (
    Dense,
    Options,
    SentenceTransformer,
    activation_of,
    read_sentence_transformer,
)
from vllm.models.registry import Architecture, find
from vllm.pooling_params import PooledTexts, PoolerConfig, Pooling, PoolingTask, PoolingType

Activation = Literal["softmax", "sigmoid", "none"]

_TASKS: dict[str, tuple[str, str]] = {
    "auto": ("auto", "auto"),
    "generate": ("generate", "none"),
    "embed": ("pooling", "embed"),
    "embedding": ("pooling", "embed"),
    "classify": ("pooling", "classify"),
    "reward": ("pooling", "reward"),
    "score": ("pooling", "auto"),
}
"""What `task` says in terms of `runner` and `convert`."""

_OFFERS: dict[str, tuple[PoolingTask, ...]] = {
    "embed": ("embed", "token_embed"),
    "token_embed": ("token_embed",),
    "classify": ("classify",),
    "token_classify": ("token_classify",),
    "reward": ("token_classify",),
    "process_reward": ("token_classify",),
    "states": ("token_embed",),
}
"""Head → the tasks it can do, its own first.  "states": a decoder whose hidden states are the reward."""

_NOT_POOLED = {"GritLM": "embeds by what stands behind an instruction, which is not supported"}
"""Architecture that pools where it was published, and not here → why."""


def resolve_pooling(
    hf_config: Any,
    folder: Path,
    *,
    runner: str = "auto",
    convert: str = "auto",
    task: str = "auto",
    pooler_config: PoolerConfig | None = None,
    impl: str = "auto",
) -> Pooling | None:
    """Return how a model pools, or None if it generates.

    Raises ConfigError for a runner, conversion or task that the model can't have.
    """
    architecture = find(hf_config, impl)
    stored = read_sentence_transformer(folder)
    runner, convert = _wanted(runner, convert, task)
    pools = architecture.head != "generate" or architecture.both_ways
    pools = pools or (stored is not None and bool(stored.pooling_types or stored.label_tokens))
    if runner == "generate" or (runner == "auto" and not pools and convert in ("auto", "none")):
        if architecture.head != "generate" or architecture.both_ways:
            why = (
                "lets tokens see those behind them" if architecture.both_ways else "has no vocabulary to generate from"
            )
            raise ConfigError(f"task={task!r}, runner={runner!r}: {architecture.name} {why}; it pools: leave them out")
        return None
    if reason := _NOT_POOLED.get(architecture.name):
        raise ConfigError(
            f"task={task!r}, runner={runner!r}: {architecture.name} {reason}; it generates: leave them out"
        )
    head = _head(architecture, convert, hf_config, stored)
    pooling = _of_head(head, architecture, hf_config, stored, folder)
    pooling = _overridden(pooling, head, pooler_config or PoolerConfig(), hf_config)
    return _with_label_tokens(pooling, hf_config, stored, folder)


def native_length(hf_config: Any, folder: Path) -> int | None:
    """Return the tokens that a sequence may have by what the model was made for; None if nothing is said."""
    text_config = hf_config.get_text_config()
    names = ("max_target_positions", "max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    known = next((value for name in names if (value := getattr(text_config, name, None))), None)
    if known is not None:
        known = _scaled(known, getattr(text_config, "rope_parameters", None))
        if getattr(text_config, "model_type", "") in _SHIFTED:
            known -= text_config.pad_token_id + 1
    stored = read_sentence_transformer(folder)
    limits = [limit for limit in (known, stored.options.max_length if stored else None) if limit]
    return min(limits, default=None)


_SHIFTED = (
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
)
"""Model types whose first positions are the padding's."""


def _scaled(length: int, rope: dict[str, Any] | None) -> int:
    """Rope scaling extends the length that a config names as the original one; some configs name the extended one.

    Where each kind of layer has its own rope (gemma3), all of them must be extended.
    """
    kinds = [kind for kind in (rope or {}).values() if isinstance(kind, dict)] or [rope or {}]
    factors = [kind.get("factor") or 1.0 for kind in kinds if kind.get("rope_type") in ("linear", "dynamic", "yarn")]
    originals = [kind.get("original_max_position_embeddings") for kind in kinds]
    if len(factors) < len(kinds) or any(original and original < length for original in originals):
        return length
    return int(length * min(factors))


def _wanted(runner: str, convert: str, task: str) -> tuple[str, str]:
    """Join today's way to say what is wanted with the older one."""
    by_task = _TASKS[task]
    for name, given, meant in (("runner", runner, by_task[0]), ("convert", convert, by_task[1])):
        if "auto" not in (given, meant) and given != meant:
            raise ConfigError(f"task={task!r} means {name}={meant!r}, but {name}={given!r} is given; leave out one")
    return tuple(given if given != "auto" else meant for given, meant in zip((runner, convert), by_task, strict=True))  # type: ignore[return-value]


def _head(architecture: Architecture, convert: str, hf_config: Any, stored: SentenceTransformer | None) -> str:
    """Return the head that a model gets."""
    own = architecture.head
    has_label_tokens = getattr(hf_config, "classifier_from_token", None) or (stored and stored.label_tokens)
    if convert in ("auto", "none", own):
        if own == "embed" and stored and stored.modules and not stored.pooling_types:
            return "token_embed"  # each token's state is projected: a ColBERT
        if own == "generate":
            return "classify" if has_label_tokens else "embed"
        return own
    if convert == "embed":
        return "embed"
    if convert == "reward":
        return "states" if own in ("generate", "embed") else own
    if own in ("generate", "classify", "token_classify") or has_label_tokens:
        return "classify" if own == "generate" else own
    raise ConfigError(
        f"{architecture.name} can't be made to classify: it has no weights for classes; use a checkpoint of "
        f"{architecture.base}ForSequenceClassification, or task='embed'"
    )


def _of_head(
    head: str, architecture: Architecture, config: Any, stored: SentenceTransformer | None, folder: Path
) -> Pooling:
    """Return what a head does where the user says nothing."""
    types = getattr(config.get_text_config(), "type_vocab_size", 0) or 0
    if head in ("embed", "token_embed", "states"):
        pooling = _embedding(head, architecture, config, stored, folder)
    else:
        pooling = _labels(head, architecture, config, stored)
    lower_case = stored is not None and stored.options.lower_case
    lower_case = lower_case or (architecture.is_pair and _is_lower_case(config, folder))
    return replace(pooling, texts=replace(pooling.texts, num_token_types=types, lower_case=lower_case))


def _embedding(
    head: str, architecture: Architecture, config: Any, stored: SentenceTransformer | None, folder: Path
) -> Pooling:
    hidden = pair_width(config) if architecture.is_pair else config.get_text_config().hidden_size
    projections = [module for module in stored.modules if isinstance(module, Dense)] if stored else []
    if head == "states":
        return Pooling(_OFFERS[head], "ALL", width=hidden, normalize=False, activation="none")
    if head == "token_embed":
        width = projections[-1].rows if projections else _colbert_width(config, folder)
        return Pooling(_OFFERS[head], "ALL", width=width, activation="none")
    first, *others = stored.pooling_types if stored and stored.pooling_types else (_default_type(architecture, config),)
    lengths = getattr(config, "matryoshka_dimensions", None)
    options = stored.options if stored else Options()
    return Pooling(
        _OFFERS[head],
        cast(PoolingType, first),
        concatenated=tuple(cast(PoolingType, other) for other in others),
        width=projections[-1].rows if projections else hidden * (1 + len(others)),
        normalize=stored.normalize if stored and stored.pooling_types else True,
        activation="none",
        matryoshka=tuple(lengths) if lengths else bool(getattr(config, "is_matryoshka", False)),
        texts=PooledTexts(options.prompts, options.default_prompt, cast(Any, options.similarity or "cosine")),
    )


def _is_lower_case(config: Any, folder: Path) -> bool:
    """Whether texts are written small by siglip's own tokenizer, which tokenizer.json doesn't say."""
    try:
        said = json.loads((folder / "tokenizer_config.json").read_bytes()).get("tokenizer_class") or ""
    except (OSError, ValueError):
        said = ""
    return config.model_type == "siglip2" or str(said).startswith("Siglip")


def pair_width(config: Any) -> int:
    """Return the width of what the towers of texts and of pictures both make."""
    text = config.get_text_config()
    width = getattr(config, "projection_dim", None) or getattr(text, "projection_size", None) or text.hidden_size
    return int(width)


def _labels(head: str, architecture: Architecture, config: Any, stored: SentenceTransformer | None) -> Pooling:
    num_labels = getattr(config.get_text_config(), "num_labels", 0) or 0
    if head == "reward":
        num_labels = 1
    if head == "classify":
        whole: PoolingType = "CLS" if architecture.is_encoder else "LAST"
        if getattr(config, "classifier_pooling", None) == "mean":
            whole = "MEAN"
        return Pooling(
            _OFFERS[head],
            whole,
            activation=_activation(config, num_labels, stored),
            num_labels=num_labels,
        )
    activation: Activation = "none" if head == "reward" else "softmax"
    pooling_type: PoolingType = "STEP" if head == "process_reward" else "ALL"
    return Pooling(_OFFERS[head], pooling_type, activation=activation, num_labels=num_labels)


_POOLING_NAMES: dict[Any, PoolingType] = {"avg": "MEAN", "mean": "MEAN", "cls": "CLS", "last": "LAST"}
"""What configurations of models with code of their own call the pooling."""


def _default_type(architecture: Architecture, config: Any) -> PoolingType:
    """Return which hidden states make an embedding where no folder of sentence-transformers says it."""
    for name in ("pooling", "emb_pooler"):
        if said := _POOLING_NAMES.get(getattr(config, name, None)):
            return said
    if architecture.is_encoder:
        return "CLS"
    return "MEAN" if architecture.both_ways else "LAST"


def _colbert_width(config: Any, folder: Path) -> int:
    """Return the width of a ColBERT's token embeddings; its authors keep it in a file beside config.json."""
    for name in ("colbert_dim", "projection_dim", "embedding_dim"):
        if isinstance(width := getattr(config, name, None), int):
            return width
    try:
        width = json.loads((folder / "artifact.metadata").read_bytes())["dim"]
    except (OSError, ValueError, KeyError, TypeError):
        return 128
    return int(width)


def _activation(config: Any, num_labels: int, stored: SentenceTransformer | None) -> Activation:
    """What turns logits of classes into what is returned."""
    said = stored.options.activation if stored else None
    own = getattr(config, "sentence_transformers", None)
    if isinstance(own, dict):
        said = said or activation_of(own.get("activation_fn"))
    said = said or activation_of(getattr(config, "sbert_ce_default_activation_function", None))
    if said is not None:
        return cast(Activation, said)
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or num_labels == 1 else "softmax"


def _overridden(pooling: Pooling, head: str, user: PoolerConfig, config: Any) -> Pooling:
    """Return a pooling with what the user says of it."""
    per_token = pooling.tasks[0].startswith("token_")
    chosen = (user.tok_pooling_type if per_token else user.seq_pooling_type) or user.pooling_type
    activates = user.activates
    step_tag = user.step_tag_id if user.step_tag_id is not None else getattr(config, "step_tag_id", None)
    if chosen is not None and (chosen in ("ALL", "STEP")) != per_token:
        other = "ALL or STEP" if per_token else "CLS, LAST or MEAN"
        raise ConfigError(f"pooler_config: pooling_type={chosen!r} does not fit {pooling.tasks[0]}; use {other}")
    if user.enable_chunked_processing and head != "embed":
        raise ConfigError("pooler_config: enable_chunked_processing is for models that embed")
    if chosen is not None and pooling.concatenated:
        joined = ", ".join((pooling.pooling_type, *pooling.concatenated))
        raise ConfigError(
            f"pooler_config: pooling_type={chosen!r} can't replace the types that this model joins, {joined}"
        )
    most = (user.max_embed_len or 2**20) if user.enable_chunked_processing else None
    return replace(
        pooling,
        pooling_type=chosen or pooling.pooling_type,
        normalize=next((v for v in (user.normalize, user.use_activation) if v is not None), pooling.normalize),
        activation="none" if activates is False else pooling.activation,
        dimensions=user.dimensions,
        step_tag_id=step_tag,
        returned_token_ids=tuple(user.returned_token_ids) if user.returned_token_ids else None,
        texts=replace(pooling.texts, max_embed_len=most),
    )


def _with_label_tokens(pooling: Pooling, config: Any, stored: SentenceTransformer | None, folder: Path) -> Pooling:
    """Let tokens of the vocabulary be the classes, where that is asked for."""
    names = getattr(config, "classifier_from_token", None)
    if not pooling.num_labels:
        return pooling
    if names:
        ids = _token_ids(names, folder)
        difference = _compares_tokens(config)
        if difference and len(ids) != 2:
            raise ConfigError(f"classifier_from_token={names}: a token is scored against another, so two must be named")
    elif stored and stored.label_tokens:
        ids = stored.label_tokens
        difference = len(ids) == 2
    else:
        return pooling
    num_labels = 1 if difference else len(ids)
    return replace(
        pooling,
        label_tokens=ids,
        label_difference=difference,
        num_labels=num_labels,
        activation="sigmoid" if num_labels == 1 and pooling.activation != "none" else pooling.activation,
    )


def _compares_tokens(config: Any) -> bool:
    """Whether one token is scored against another, and not each by itself."""
    method = getattr(config, "method", None) or "no_post_processing"
    if method not in ("from_2_way_softmax", "no_post_processing"):
        raise ConfigError(f"method={method!r} is not supported; use from_2_way_softmax or no_post_processing")
    return method == "from_2_way_softmax" or bool(getattr(config, "is_original_qwen3_reranker", False))


def _token_ids(names: list[str], folder: Path) -> tuple[int, ...]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = []
    for name in names:
        token = tokenizer.token_to_id(name)
        if token is None:
            raise ConfigError(f"classifier_from_token={names}: {name!r} is no token of this model")
        ids.append(token)
    return tuple(ids)
