"""What the cache of a module of transformers takes: foretold from a few tokens, and what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.tiny import save_tiny
from vllm import LLM, SamplingParams
from vllm.models.fallback_decoder import ForeignDecoder
from vllm.models.foreign_cache import SHORT, measure_growth


@pytest.fixture
def open_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("vllm.models.fallback_decoder.PACKED", frozenset())
    opened = []

    def open_model(model_type: str, changes: Any = None, **options: Any) -> LLM:
        save_tiny(model_type, tmp_path, changes)
        settings = {"dtype": "float32", "skip_tokenizer_init": True, "max_model_len": 64, "device": "cpu", **options}
        opened.append(LLM(str(tmp_path), model_impl="transformers", **settings))
        return opened[-1]

    yield open_model
    for llm in opened:
        llm.close()


def entry_of(llm: LLM) -> ForeignDecoder:
    entry = llm.llm_engine.core.executor.runner.hidden.model.entry
    assert isinstance(entry, ForeignDecoder)
    return entry


@pytest.mark.parametrize(
    "model_type", ["llama", "gemma2", "deepseek_v3", "jamba", "mamba2", "minimax", "rwkv", "deepseek_v4"]
)
def test_what_a_sequence_takes_is_known_before_it_comes(model_type: str, open_model: Any) -> None:
    entry = entry_of(open_model(model_type))
    with torch.inference_mode():
        for num_tokens in (2 * SHORT, 50):
            foretold = entry.sequence_bytes(num_tokens)
            held = 8 * num_tokens
            if entry._cache_name is not None:
                held += sum(part.long for part in measure_growth(lambda _, n=num_tokens: entry._filled(n)))
            assert held <= 1.001 * foretold <= 1.5 * held, num_tokens


def test_a_window_bounds_what_its_layers_take(open_model: Any) -> None:
    entry = entry_of(open_model("gemma2", {"sliding_window": 40}))
    grown = [entry.sequence_bytes(count) - entry.sequence_bytes(count - 1) for count in (40, 41)]
    assert (grown[1] - 8) * 2 == grown[0] - 8  # every other layer has the window


def test_no_more_sequences_run_than_there_is_memory_for(open_model: Any) -> None:
    wide = open_model("llama", max_num_seqs=8)
    plan = wide.llm_engine.core.executor.plan
    assert plan.num_seqs == 8 and plan.cache == 8 * entry_of(wide).sequence_bytes(64)
    prompts = [{"prompt_token_ids": [5 + number, 7, 9]} for number in range(6)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    expected = [output.outputs[0].token_ids for output in wide.generate(prompts, params, use_tqdm=False)]

    narrow = open_model("llama", max_num_seqs=8, kv_cache_memory_bytes=2 * plan.cache // 8 + 100)
    running = []
    engine = narrow.llm_engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params)
    found = {}
    while engine.has_work:
        for output in engine.step():
            found[int(output.request_id)] = output.outputs[0].token_ids
        running.append(len(engine.scheduler.running))
    assert max(running) == 2 == engine.core.executor.plan.num_seqs
    assert [found[number] for number in range(6)] == expected
