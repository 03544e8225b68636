"""Longcat flash lite: longcat flash with embeddings of n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.models.families.deepseek import LONGCAT_NAMES, longcat_flash
from vllm.models.families.era import known
from vllm.models.spec import TransformerSpec
from vllm.models.spec_recurrent import NgramSpec

NAMES: Mapping[str, str] = {
    **LONGCAT_NAMES,
    "ngram_embed": "model.ngram_embeddings.embedders.{x}",
    "ngram_project": "model.ngram_embeddings.post_projs.{x}",
}
_FIELDS = {"intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers"}


def longcat_ngram(config: Any) -> TransformerSpec:
    """A token's embedding is a mean with those of the n-grams that end there."""
    config = known(config, **_FIELDS)
    spec, end = longcat_flash(config), config.eos_token_id
    ngrams = NgramSpec(
        config.emb_neighbor_num,
        config.emb_split_num,
        config.ngram_vocab_size_ratio * config.vocab_size,
        end[0] if isinstance(end, list) else end,
    )
    ignored = (*spec.ignored_names, "model.ngram_embeddings.word_embeddings.*")  # the table of tokens once more
    return replace(spec, entry=replace(spec.entry, ngrams=ngrams), names=NAMES, ignored_names=ignored)
