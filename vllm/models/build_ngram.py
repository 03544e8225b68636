"""From the spec of n-grams' embeddings to modules; a part of `build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vllm.layers.embedding import Embedding
from vllm.layers.linear import Part
from vllm.layers.ngram import NgramInput
from vllm.models.spec_recurrent import NgramSpec

if TYPE_CHECKING:
    from vllm.models.build import Builder


def build_ngram_input(builder: Builder, tokens: Embedding, ngrams: NgramSpec) -> NgramInput:
    """Make the entry that looks up n-grams too."""
    vocab_size, width = builder.spec.entry.vocab_size, builder.spec.width
    count, before = ngrams.tables * (ngrams.longest - 1), ngrams.longest - 1
    rows = [ngrams.rows + 2 * number + 1 for number in range(count)]
    powers = torch.zeros(count, before, dtype=torch.int64, device=builder.placement.device)
    for number, size in enumerate(rows):
        for shift in range(1, number // ngrams.tables + 2):
            powers[number, shift - 1] = pow(vocab_size, shift, size)
    names = [
        tuple(builder.name(role, 0, number) for role in ("ngram_embed", "ngram_project")) for number in range(count)
    ]
    tables = [
        Embedding(size, width // count, name, builder.placement) for size, (name, _) in zip(rows, names, strict=True)
    ]
    projections = [builder.linear(width // count, [Part(name, width)], False) for _, name in names]
    return NgramInput(builder.next_cache(), tokens, tables, projections, powers, ngrams.end)
