"""Encoders through the engine: what comes out is what transformers computes, whatever runs beside a prompt."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.checkpoints import reference
from vllm import EngineArgs, LLMEngine, PoolingParams, SamplingParams
from vllm.errors import ConfigError
from vllm.messages import EngineRequest

RNG = random.Random(1)
PROMPTS = [[RNG.randrange(5, 500) for _ in range(length)] for length in (1, 40, 7, 17, 100, 16, 33, 2)]
OURS = ["albert", "bert", "roberta", "mpnet", "modernbert", "gte", "qwen2"]
NO_HEADS = {"num_key_value_heads": None}
FIELDS: dict[str, dict[str, Any]] = {
    "modernbert": {**NO_HEADS, "local_attention": 16, "cls_token_id": 0, "sep_token_id": 0},
    "deberta-v2": {**NO_HEADS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "albert": {**NO_HEADS, "embedding_size": 16},
    "qwen2": {"is_causal": False},
    "roberta": {**NO_HEADS, "type_vocab_size": 1},
}


def pooled(engine: LLMEngine, prompts: list[list[int]], types: list[list[int]] | None = None) -> list[np.ndarray]:
    for number, prompt in enumerate(prompts):
        params = PoolingParams(skip_reading_prefix_cache=True)
        kinds = types[number] if types else []
        engine.add(EngineRequest(str(number), prompt, SamplingParams(), pooling=params, token_types=kinds))
    found = {}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None  # type: ignore[union-attr]
            found[output.request_id] = output.outputs.data  # type: ignore[union-attr]
    engine.scheduler.check()
    return [found[str(number)] for number in range(len(prompts))]


def load(folder: Path, **options: Any) -> LLMEngine:
    return LLMEngine.from_engine_args(EngineArgs(str(folder), dtype="float32", **options))


def write(checkpoint: Callable[..., Path], model_type: str, head: str = "", **fields: Any) -> Path:
    return checkpoint(model_type, head=head, **{**FIELDS.get(model_type, NO_HEADS), **fields})


@pytest.mark.parametrize("model_type", [*OURS, "deberta-v2"])
def test_an_encoder_embeds_the_same_alone_and_in_company(model_type: str, checkpoint: Callable[..., Path]) -> None:
    folder = write(checkpoint, model_type)
    theirs = reference(folder, "")
    with load(folder, pooler_config={"pooling_type": "MEAN"}, max_num_seqs=3) as engine:
        together = pooled(engine, PROMPTS)
        alone = [pooled(engine, [prompt])[0] for prompt in PROMPTS]
    for prompt, found, other in zip(PROMPTS, together, alone, strict=True):
        with torch.no_grad():
            mean = theirs(torch.tensor([prompt]))[0][0].mean(0)
        np.testing.assert_allclose(found, (mean / mean.norm()).numpy(), atol=1e-4)
        assert np.array_equal(found, other)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet", "deberta-v2"])
def test_a_cross_encoder_scores_pairs(model_type: str, checkpoint: Callable[..., Path]) -> None:
    one = {"id2label": {0: "yes"}, "label2id": {"yes": 0}}
    extra = {"type_vocab_size": 2} if model_type == "deberta-v2" else {}
    folder = write(checkpoint, model_type, "ForSequenceClassification", **one, **extra)
    theirs = reference(folder, "ForSequenceClassification")
    types = [[0] * (len(prompt) // 2) + [1] * (len(prompt) - len(prompt) // 2) for prompt in PROMPTS]
    knows = model_type in ("bert", "deberta-v2")
    with load(folder) as engine:
        assert engine.model_config.pooling is not None and engine.model_config.pooling.is_cross_encoder
        found = pooled(engine, PROMPTS, types)
    for prompt, kinds, score in zip(PROMPTS, types, found, strict=True):
        options = {"token_type_ids": torch.tensor([kinds])} if knows else {}
        with torch.no_grad():
            expected = theirs(torch.tensor([prompt]), **options).logits[0].sigmoid()
        np.testing.assert_allclose(score, expected.numpy(), atol=1e-4)


def test_a_step_must_have_room_for_a_whole_prompt(checkpoint: Callable[..., Path]) -> None:
    folder = write(checkpoint, "albert")
    with pytest.raises(ConfigError, match="max_num_batched_tokens=64 is less than max_model_len=512"):
        load(folder, max_num_batched_tokens=64)
