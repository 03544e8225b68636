"""What a model is for: what its architecture, its folder and the user say, settled.  Needs no torch.

architecture ─┐
modules.json ─┼─▶ Pooling, or None for a model that generates
user ─────────┘
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from vllm.errors import ConfigError
from vllm.loader.sentence_transformers import SentenceTransformer, activation_of, read_sentence_transformer
from vllm.models.registry import Architecture, find
from vllm.pooling_params import PoolerConfig, Pooling, PoolingTask, PoolingType

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


def resolve_pooling(
    hf_config: Any,
    folder: Path,
    *,
    runner: str = "auto",
    convert: str = "auto",
    task: str = "auto",
    pooler_config: PoolerConfig | None = None,
) -> Pooling | None:
    """Return how a model pools, or None if it generates.

    Raises ConfigError for a runner, conversion or task that the model can't have.
    """
    architecture = find(hf_config)
    stored = read_sentence_transformer(folder)
    runner, convert = _wanted(runner, convert, task)
    pools = architecture.head != "generate" or (stored is not None and stored.pooling_type is not None)
    if runner == "generate" or (runner == "auto" and not pools and convert in ("auto", "none")):
        if architecture.head != "generate":
            raise ConfigError(
                f"task={task!r}, runner={runner!r}: {architecture.name} has no vocabulary to generate from; "
                "it pools: leave them out"
            )
        return None
    head = _head(architecture, convert, hf_config)
    pooling = _of_head(head, architecture, hf_config, stored)
    return _overridden(pooling, head, pooler_config or PoolerConfig(), hf_config, folder)


def native_length(hf_config: Any, folder: Path) -> int | None:
    """Return the tokens that a sequence may have by what the model was made for; None if nothing is said."""
    text_config = hf_config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    known = next((value for name in names if (value := getattr(text_config, name, None))), None)
    if known is not None:
        known = _scaled(known, getattr(text_config, "rope_parameters", None))
        if getattr(text_config, "model_type", "") in _SHIFTED:
            known -= text_config.pad_token_id + 1
    stored = read_sentence_transformer(folder)
    limits = [limit for limit in (known, stored.max_length if stored else None) if limit]
    return min(limits, default=None)


_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet", "data2vec-text", "xlm-roberta-xl")
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


def _head(architecture: Architecture, convert: str, hf_config: Any) -> str:
    """Return the head that a model gets."""
    own = architecture.head
    if convert in ("auto", "none", own):
        return "embed" if own == "generate" else own
    if convert == "embed":
        return "embed"
    if convert == "reward":
        return "states" if own in ("generate", "embed") else own
    if own == "generate" or getattr(hf_config, "classifier_from_token", None):
        return "classify"
    raise ConfigError(
        f"{architecture.name} can't be made to classify: it has no weights for classes; use a checkpoint of "
        f"{architecture.base}ForSequenceClassification, or task='embed'"
    )


def _of_head(head: str, architecture: Architecture, config: Any, stored: SentenceTransformer | None) -> Pooling:
    """Return what a head does where the user says nothing."""
    text_config = config.get_text_config()
    whole: PoolingType = "CLS" if architecture.is_encoder else "LAST"
    width = stored.dense[-1].rows if stored and stored.dense else text_config.hidden_size
    if head == "embed":
        lengths = getattr(config, "matryoshka_dimensions", None)
        return Pooling(
            _OFFERS[head],
            cast(PoolingType, stored.pooling_type) if stored and stored.pooling_type else whole,
            width,
            normalize=stored.normalize if stored and stored.pooling_type else True,
            activation="none",
            matryoshka=tuple(lengths) if lengths else bool(getattr(config, "is_matryoshka", False)),
            prompts=stored.prompts if stored else (),
            default_prompt=stored.default_prompt if stored else None,
        )
    if head in ("token_embed", "states"):
        width = text_config.hidden_size if head == "states" else getattr(config, "dim", None) or 128  # ColBERT's own
        return Pooling(_OFFERS[head], "ALL", width, normalize=head == "token_embed", activation="none")
    num_labels = getattr(text_config, "num_labels", 0) or 0
    if head == "reward":
        num_labels = 1
    if head == "classify":
        if getattr(config, "classifier_pooling", None) == "mean":
            whole = "MEAN"
        return Pooling(
            _OFFERS[head],
            whole,
            activation=_activation(config, num_labels, stored),
            num_labels=num_labels,
            is_cross_encoder=num_labels == 1,
        )
    activation: Literal["softmax", "none"] = "none" if head == "reward" else "softmax"
    pooling_type: PoolingType = "STEP" if head == "process_reward" else "ALL"
    return Pooling(_OFFERS[head], pooling_type, activation=activation, num_labels=num_labels)


def _activation(
    config: Any, num_labels: int, stored: SentenceTransformer | None
) -> Literal["softmax", "sigmoid", "none"]:
    """What turns logits of classes into what is returned."""
    said = stored.activation if stored else None
    own = getattr(config, "sentence_transformers", None)
    if isinstance(own, dict):
        said = said or activation_of(own.get("activation_fn"))
    said = said or activation_of(getattr(config, "sbert_ce_default_activation_function", None))
    if said is not None:
        return cast('Literal["softmax", "sigmoid", "none"]', said)
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or num_labels == 1 else "softmax"


def _overridden(pooling: Pooling, head: str, user: PoolerConfig, config: Any, folder: Path) -> Pooling:
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
    pooling = replace(
        pooling,
        pooling_type=chosen or pooling.pooling_type,
        normalize=next((v for v in (user.normalize, user.use_activation) if v is not None), pooling.normalize),
        activation="none" if activates is False else pooling.activation,
        dimensions=user.dimensions,
        step_tag_id=step_tag,
        returned_token_ids=tuple(user.returned_token_ids) if user.returned_token_ids else None,
        max_embed_len=(user.max_embed_len or 2**20) if user.enable_chunked_processing else None,
    )
    return _with_label_tokens(pooling, config, folder)


def _with_label_tokens(pooling: Pooling, config: Any, folder: Path) -> Pooling:
    """Let tokens of the vocabulary be the classes, where that is asked for."""
    names = getattr(config, "classifier_from_token", None)
    if not names or not pooling.num_labels:
        return pooling
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.token_to_id(name) for name in names]
    if None in ids:
        raise ConfigError(f"classifier_from_token={names}: {names[ids.index(None)]!r} is no token of this model")
    difference = bool(getattr(config, "is_original_qwen3_reranker", False)) and len(ids) == 2
    num_labels = 1 if difference else len(ids)
    return replace(
        pooling,
        label_tokens=tuple(ids),
        label_difference=difference,
        num_labels=num_labels,
        activation="sigmoid" if num_labels == 1 else pooling.activation,
        is_cross_encoder=num_labels == 1,
    )
