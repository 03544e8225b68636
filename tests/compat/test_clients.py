"""Packages that load a model through `vllm`, as they are published: they construct, and they get an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vllm import LLM, SamplingParams

MISSING = "is not installed: the extra compat"


@pytest.fixture
def expected(checkpoint: Callable[..., Path]) -> str:
    """What the tiny llama says."""
    with LLM(str(checkpoint("llama")), dtype="float32") as llm:
        return llm.generate("The tide", SamplingParams(temperature=0, max_tokens=8))[0].outputs[0].text


def test_langchain(checkpoint: Callable[..., Path], expected: str) -> None:
    llms = pytest.importorskip("langchain_community.llms", reason=f"langchain-community {MISSING}")
    llm = llms.VLLM(model=str(checkpoint("llama")), max_new_tokens=8, temperature=0.0, dtype="float32")
    assert llm.invoke("The tide") == expected
    assert len(llm.generate(["The tide", "Hello"]).generations) == 2


def test_llama_index(checkpoint: Callable[..., Path], expected: str) -> None:
    module = pytest.importorskip("llama_index.llms.vllm", reason=f"llama-index-llms-vllm {MISSING}")
    options = {"max_new_tokens": 8, "temperature": 0.0, "dtype": "float32", "vllm_kwargs": {}}
    assert module.Vllm(model=str(checkpoint("llama")), **options).complete("The tide").text == expected


def test_mteb(checkpoint: Callable[..., Path]) -> None:
    mteb = pytest.importorskip("mteb", reason=f"mteb {MISSING}")
    from mteb.models import ModelMeta
    from mteb.models.vllm_wrapper import VllmCrossEncoderWrapper, VllmEncoderWrapper
    from torch.utils.data import DataLoader

    def load(wrapper: Any, folder: Path) -> Any:
        meta = ModelMeta.create_empty(overwrites={"name": str(folder)})
        return wrapper(meta, dtype="float32", gpu_memory_utilization=0.5)

    def texts(*some: str) -> Any:
        return DataLoader([{"text": text} for text in some], batch_size=2)  # type: ignore[arg-type]

    task = {"task_metadata": mteb.get_task("STS12").metadata, "hf_split": "test", "hf_subset": "default"}
    encoder = load(VllmEncoderWrapper, checkpoint("bert", head=""))
    embeddings = encoder.encode(texts("The tide", "Hello", "The tide"), **task)
    assert embeddings.shape == (3, 48) and torch.equal(embeddings[0], embeddings[2])
    encoder.cleanup()

    labels = {"id2label": {0: "yes"}, "label2id": {"yes": 0}}
    ranker = load(VllmCrossEncoderWrapper, checkpoint("qwen2", head="ForSequenceClassification", **labels))
    scores = ranker.predict(texts("The tide", "The tide"), texts("comes in", "Hello"), **task)
    assert scores.shape == (2,) and np.all((scores > 0) & (scores < 1)) and scores[0] != scores[1]
    ranker.cleanup()
