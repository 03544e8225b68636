"""Poolers by architecture: what stands between hidden states and a result, and where its weights are in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vllm.errors import ModelError
from vllm.layers.linear import Linear, Part
from vllm.layers.norm import LayerNorm
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.loader.sentence_transformers import Dense, module_weights, read_sentence_transformer
from vllm.models.registry import Architecture
from vllm.models.spec import TransformerSpec
from vllm.pooling_params import Pooling


@dataclass(frozen=True, slots=True)
class Body:
    """What a head must know of the model below it."""

    width: int
    prefix: str
    """How the body's names begin in a checkpoint that has a head."""
    vocabulary: str = ""
    """The name of the matrix that makes logits of tokens; "" if there is none."""

    @classmethod
    def of(cls, spec: TransformerSpec) -> Body:
        vocabulary = spec.names["embed"] if spec.tied else spec.names["head"]
        return cls(spec.width, spec.base_prefix, vocabulary)


@dataclass(frozen=True, slots=True)
class Projection:
    """activation(W x + b), stored as `name`."""

    name: str
    rows: int
    bias: bool = True
    activation: str | None = None
    cut: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Normalization:
    """A layer norm, stored as `name`."""

    name: str
    eps: float
    bias: bool = True


Chain = list[Projection | Normalization]


def make_pooler(
    architecture: Architecture,
    config: Any,
    body: Body,
    pooling: Pooling,
    placement: Placement,
    folder: Path | None,
) -> Pooler:
    """Make the pooler of a model.  Weights of sentence-transformers' modules are in `folder`.

    Raises ModelError for an architecture whose head is not known here.
    """
    modules = _modules(folder)
    if pooling.num_labels or pooling.returned_token_ids:
        chain = _classes(architecture, config, body, pooling)
    elif architecture.head == "token_embed" and not modules:
        is_retriever = architecture.name.endswith("ForRetrieval")
        chain = [Projection("embedding_proj_layer" if is_retriever else "linear", pooling.width, bias=is_retriever)]
    else:
        chain = modules
    width = body.width * (1 + len(pooling.concatenated))
    layers: list[nn.Module] = []
    for step in chain:
        if isinstance(step, Normalization):
            layers.append(LayerNorm(width, step.name, placement, step.eps, bias=step.bias))
            continue
        part = Part(step.name, step.rows, step.cut)
        layers.append(Linear(width, [part], placement.unquantized, bias=step.bias, activation=step.activation))
        width = step.rows
    return Pooler(pooling, layers, width)


def head_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files of weights that sentence-transformers keep beside the model's, each with its names' beginning."""
    stored = read_sentence_transformer(folder)
    modules = () if stored is None else stored.modules
    return [(f"{module.name}.", module_weights(stored.root, module)) for module in modules] if stored else []


def _modules(folder: Path | None) -> Chain:
    stored = None if folder is None else read_sentence_transformer(folder)
    return [
        Projection(f"{module.name}.linear", module.rows, module.bias, module.activation)
        if isinstance(module, Dense)
        else Normalization(f"{module.name}.norm", 1e-5)
        for module in (() if stored is None else stored.modules)
    ]


def _classes(architecture: Architecture, config: Any, body: Body, pooling: Pooling) -> Chain:
    """The layers from a hidden state to logits of classes."""
    labels = pooling.num_labels
    tokens = pooling.label_tokens or pooling.returned_token_ids or ()
    if tokens:
        cut = partial(_difference if pooling.label_difference else _rows, tokens)
        return [Projection(body.vocabulary, labels or len(tokens), False, None, cut)]
    if architecture.head == "reward" and architecture.base == "InternLM2":
        return [Projection("v_head", labels, bias=False)]
    if architecture.head in ("reward", "process_reward"):
        return [Projection("score.0", body.width, activation="relu"), Projection("score.2", labels)]
    per_token = architecture.head == "token_classify"
    if not architecture.is_encoder:
        return [Projection("score", labels, bias=per_token)]
    if architecture.base == "ModernBert":
        return [*_modernbert(config), Projection("classifier", labels)]
    if per_token:
        return [Projection("classifier", labels)]
    if architecture.base not in _ENCODER_HEADS:
        raise ModelError(
            f"{architecture.name}: the head that classifies is not known for {architecture.base}; load it with "
            f"task='embed', or use one of {', '.join(sorted(_ENCODER_HEADS))}"
        )
    return _ENCODER_HEADS[architecture.base](config, body, labels)


def _modernbert(config: Any) -> Chain:
    return [
        Projection("head.dense", config.hidden_size, config.classifier_bias, config.classifier_activation),
        Normalization("head.norm", config.norm_eps, config.norm_bias),
    ]


def _bert_pooler(config: Any, body: Body, labels: int) -> Chain:
    """What a body of bert's kind does to its first token."""
    return [Projection(f"{body.prefix}pooler.dense", body.width, activation="tanh"), Projection("classifier", labels)]


def _albert(config: Any, body: Body, labels: int) -> Chain:
    return [Projection(f"{body.prefix}pooler", body.width, activation="tanh"), Projection("classifier", labels)]


def _deberta(config: Any, body: Body, labels: int) -> Chain:
    dense = Projection("pooler.dense", config.pooler_hidden_size, activation=config.pooler_hidden_act)
    return [dense, Projection("classifier", labels)]


def _distilbert(config: Any, body: Body, labels: int) -> Chain:
    return [Projection("pre_classifier", body.width, activation="relu"), Projection("classifier", labels)]


def _two_layers(activation: str | None, config: Any, body: Body, labels: int) -> Chain:
    """Roberta's head; without `activation` that of the model."""
    dense = Projection("classifier.dense", body.width, activation=activation or config.hidden_act)
    return [dense, Projection("classifier.out_proj", labels)]


_ENCODER_HEADS: Mapping[str, Callable[[Any, Body, int], Chain]] = {
    **dict.fromkeys(("Bert", "Gte", "GteNew", "JinaBert", "New", "NomicBert"), _bert_pooler),
    **dict.fromkeys(("Ernie", "LayoutLM", "MegatronBert", "RemBert", "RoCBert", "SqueezeBert"), _bert_pooler),
    **dict.fromkeys(("Camembert", "JinaEmbeddingsV3", "MPNet", "Roberta", "XLMRoberta"), partial(_two_layers, "tanh")),
    **dict.fromkeys(("Data2VecText", "IBert", "RobertaPreLayerNorm"), partial(_two_layers, "tanh")),
    **dict.fromkeys(("Esm", "XLMRobertaXL"), partial(_two_layers, "tanh")),
    **dict.fromkeys(("BigBird", "ConvBert", "RoFormer"), partial(_two_layers, None)),
    "Albert": _albert,
    "Deberta": _deberta,
    "DebertaV2": _deberta,
    "DistilBert": _distilbert,
    "Electra": partial(_two_layers, "gelu"),
}
"""Base name of an encoder → the layers from its first token's hidden state to logits of classes."""


def _rows(tokens: tuple[int, ...], vocabulary: Tensor) -> Tensor:
    """[V, D] -> [N, D]"""
    return vocabulary[list(tokens)]


def _difference(tokens: tuple[int, ...], vocabulary: Tensor) -> Tensor:
    """What the second token has more than the first.  [V, D] -> [1, D]"""
    low, high = tokens
    return vocabulary[high : high + 1] - vocabulary[low : low + 1]
