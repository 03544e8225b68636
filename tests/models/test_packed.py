"""Modules of transformers that are given all rows of a step at once: what is found out of them, and what they are computed with."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.tiny import save_tiny
from vllm import LLM, SamplingParams
from vllm.kv_cache.spec import Full, Window
from vllm.models.fallback_packed import PackedDecoder, Unfit, _window
from vllm.ops.attention_torch import TorchAttention

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=3)
PROMPTS: list[Any] = [{"prompt_token_ids": [5 + number, *range(7, 9 + 5 * number)]} for number in range(5)]


def load(folder: Path, model_type: str, changes: dict[str, Any] | None = None, **options: Any) -> LLM:
    save_tiny(model_type, folder, changes)
    settings = {"dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 64, "device": "cpu", **options}
    return LLM(str(folder), model_impl="transformers", **settings)


def entry_of(llm: LLM) -> Any:
    return llm.llm_engine.core.executor.runner.hidden.model.entry


def test_what_each_attention_needs_is_found_out(tmp_path: Path) -> None:
    with load(tmp_path, "gemma2", {"sliding_window": 40, "attn_logit_softcapping": 3.0}) as llm:
        entry = entry_of(llm)
        assert isinstance(entry, PackedDecoder)
        assert [type(site.cache_spec) for site in entry.sites] == [Window, Full, Window, Full]
        assert [site.options.window for site in entry.sites] == [40, None, 40, None]
        assert {site.options.softcap for site in entry.sites} == {3.0}
        assert len(llm.llm_engine.core.executor.groups) == 2
    with load(tmp_path, "gpt_oss") as llm:
        assert all(site.options.sinks is not None and site.options.sinks.shape == (4,) for site in entry_of(llm).sites)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_request_gives_the_same_bits_in_any_company(backend: str, tmp_path: Path) -> None:
    """Where the module computes nothing but products, norms and attention by ways that don't depend on rows."""
    with load(tmp_path, "nanochat", block_size=16 if backend == "native" else 8, enable_prefix_caching=True) as llm:
        kind = type(llm.llm_engine.core.executor.runner.hidden.step.attention)
        assert (kind is TorchAttention) == (backend == "torch")
        alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].outputs[0] for prompt in PROMPTS]
        together = [output.outputs[0] for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
        assert [one.token_ids for one in alone] == [one.token_ids for one in together]
        assert [one.logprobs for one in alone] == [one.logprobs for one in together]


def test_what_a_module_cannot_do_packed_it_does_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ropes = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    with caplog.at_level(logging.INFO, "vllm"), load(tmp_path, "llama", ropes) as llm:
        assert not isinstance(entry_of(llm), PackedDecoder)
        assert "one request at a time, since its rope_type 'dynamic'" in caplog.text
        assert len(llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8


def test_a_model_that_is_closed_gives_its_weights_back(tmp_path: Path) -> None:
    llm = load(tmp_path, "nanochat")
    module = weakref.ref(entry_of(llm).module)
    llm.close()
    del llm
    gc.collect()
    assert module() is None, "transformers' table of attentions still holds it"


def test_a_predicate_that_is_no_window_is_refused() -> None:
    def causal(b: Any, h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return k <= q

    assert _window(causal, 300) is None
    assert _window(lambda b, h, q, k: (k <= q) & (k > q - 100), 300) == 100
    assert _window(lambda b, h, q, k: (k <= q) & (k > q - 400), 300) is None
    for odd in (
        lambda b, h, q, k: (k <= q) & (k // 64 == q // 64),
        lambda b, h, q, k: q >= 0,
        lambda b, h, q, k: (k <= q) & (k > q - 100) | (k == 0),
    ):
        with pytest.raises(Unfit):
            _window(odd, 300)
