"""Poolers by architecture: what stands between hidden states and a result, and where its weights are in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vllm.layers.linear import Linear, Part
from vllm.layers.placement import Placement
from vllm.layers.pooler import Pooler
from vllm.loader.sentence_transformers import dense_weights, read_sentence_transformer
from vllm.models.registry import Architecture
from vllm.models.spec import TransformerSpec
from vllm.pooling_params import Pooling


@dataclass(frozen=True, slots=True)
class Projection:
    """activation(W x + b), stored as `name`."""

    name: str
    rows: int
    bias: bool = True
    activation: str | None = None
    cut: Callable[[Tensor], Tensor] | None = None


def make_pooler(
    architecture: Architecture,
    config: Any,
    spec: TransformerSpec,
    pooling: Pooling,
    placement: Placement,
    folder: Path | None,
) -> Pooler:
    """Make the pooler of a model whose body has a spec.  Weights of sentence-transformers' modules are in `folder`."""
    if pooling.num_labels or pooling.returned_token_ids:
        chain = _classes(architecture, config, spec, pooling)
    elif architecture.head == "token_embed":
        chain = [Projection("linear", pooling.width, bias=False)]
    else:
        chain = [] if folder is None else _projections(folder)
    layers: list[nn.Module] = []
    width = spec.width
    for step in chain:
        part = Part(step.name, step.rows, step.cut)
        layers.append(Linear(width, [part], placement.unquantized, bias=step.bias, activation=step.activation))
        width = step.rows
    return Pooler(pooling, layers, width)


def head_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the files of weights that sentence-transformers keep beside the model's, each with its names' beginning."""
    stored = read_sentence_transformer(folder)
    return [] if stored is None else [(f"{dense.name}.", dense_weights(folder, dense)) for dense in stored.dense]


def _projections(folder: Path) -> list[Projection]:
    stored = read_sentence_transformer(folder)
    dense = () if stored is None else stored.dense
    return [Projection(f"{each.name}.linear", each.rows, each.bias, each.activation) for each in dense]


def _classes(architecture: Architecture, config: Any, spec: TransformerSpec, pooling: Pooling) -> list[Projection]:
    """The layers from a hidden state to logits of classes."""
    labels, width, base = pooling.num_labels, spec.width, architecture.base
    tokens = pooling.label_tokens or pooling.returned_token_ids or ()
    if tokens:
        name = spec.names["embed"] if spec.tied else spec.names["head"]
        cut = partial(_difference if pooling.label_difference else _rows, tokens)
        return [Projection(name, labels or len(tokens), False, None, cut)]
    if architecture.head in ("reward", "process_reward"):
        return [Projection("score.0", width, activation="relu"), Projection("score.2", labels)]
    per_token = architecture.head == "token_classify"
    if not architecture.is_encoder:
        return [Projection("score", labels, bias=per_token)]
    if per_token:
        return [Projection("classifier", labels)]
    if base in ("Roberta", "XLMRoberta", "Camembert", "MPNet"):
        return [Projection("classifier.dense", width, activation="tanh"), Projection("classifier.out_proj", labels)]
    if base == "Electra":
        return [Projection("classifier.dense", width, activation="gelu"), Projection("classifier.out_proj", labels)]
    if base == "DistilBert":
        return [Projection("pre_classifier", width, activation="relu"), Projection("classifier", labels)]
    return [Projection(f"{spec.base_prefix}pooler.dense", width, activation="tanh"), Projection("classifier", labels)]


def _rows(tokens: tuple[int, ...], vocabulary: Tensor) -> Tensor:
    """[V, D] -> [N, D]"""
    return vocabulary[list(tokens)]


def _difference(tokens: tuple[int, ...], vocabulary: Tensor) -> Tensor:
    """What the second token has more than the first.  [V, D] -> [1, D]"""
    low, high = tokens
    return vocabulary[high : high + 1] - vocabulary[low : low + 1]
