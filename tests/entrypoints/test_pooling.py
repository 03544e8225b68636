"""`LLM` with a model that pools: what the methods give, how they are called in both eras, and what they refuse."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from tests.entrypoints.pooled import CLASSIFIES, EMBEDS, LATE, RERANKS, REWARDS, WIDTH, output_of, pooled
from vllm import LLM, PoolingParams
from vllm.entrypoints.offline import Runs
from vllm.errors import ConfigError, ModelError, RequestError
from vllm.inputs.chat import ChatRenderer
from vllm.inputs.prepare import Limits, Preparer
from vllm.inputs.tokenizer import load_tokenizer
from vllm.messages import EngineRequest
from vllm.pooling_params import PooledTexts, Pooling


class FakeLLMEngine:
    """Pools one request a step."""

    def __init__(self, pooling: Pooling | None, folder: Path) -> None:
        self.model_config = SimpleNamespace(pooling=pooling, max_model_len=32, default_sampling={})
        self.tokenizer = load_tokenizer(folder)
        self.preparer = Preparer(self.tokenizer, Limits(600, 32))
        self.waiting: list[EngineRequest] = []
        self.seen: list[EngineRequest] = []
        self.fails: str | None = None

    @property
    def has_work(self) -> bool:
        return bool(self.waiting)

    def add(self, request: EngineRequest) -> None:
        self.seen.append(request)
        self.waiting.append(request)

    def step(self) -> list[Any]:
        request = self.waiting.pop()  # the last one first: order is ours to keep
        return [output_of(request, self.model_config.pooling, self.fails)]

    def abort_request(self, names: list[str]) -> None:
        self.waiting = [request for request in self.waiting if request.id not in names]


@pytest.fixture
def load(tokenizer_folders: dict[str, Path]) -> Any:
    def make(pooling: Pooling | None, **changes: Any) -> Any:
        llm: Any = LLM.__new__(LLM)
        pooling = dataclasses.replace(pooling, **changes) if pooling else None
        llm.llm_engine = FakeLLMEngine(pooling, tokenizer_folders["byte level"])
        llm._runs = Runs(llm.llm_engine)
        llm._renderer = ChatRenderer("tiny", {}, {})
        return llm

    return make


def test_encode_gives_tensors_in_the_order_of_prompts(load: Any) -> None:
    llm = load(EMBEDS)
    outputs = llm.encode(["the tide", "came", [5, 6]], use_tqdm=False)
    assert [output.prompt_token_ids for output in outputs] == [r.token_ids for r in llm.llm_engine.seen]
    for output, request in zip(outputs, llm.llm_engine.seen, strict=True):
        assert output.finished and output.num_cached_tokens == 2 and output.error is None
        assert output.outputs.data.dtype is torch.float32
        np.testing.assert_array_equal(output.outputs.data.numpy(), pooled(request, EMBEDS))
    assert len({output.request_id for output in outputs}) == 3


def test_encode_may_ask_for_tokens_and_give_parameters_for_each_prompt(load: Any) -> None:
    llm = load(EMBEDS)
    (output,) = llm.encode("the tide", pooling_task="token_embed", use_tqdm=False)
    assert output.outputs.data.shape == (len(output.prompt_token_ids), WIDTH)
    each = [PoolingParams(dimensions=2), PoolingParams(task="token_embed"), PoolingParams()]
    outputs = llm.encode(prompt_token_ids=[[5, 6]] * 3, pooling_params=each, use_tqdm=False)
    assert [tuple(output.outputs.data.shape) for output in outputs] == [(2,), (2, WIDTH), (WIDTH,)]
    (output,) = llm.encode([7, 8], PoolingParams(dimensions=4), False, None, None)
    assert output.outputs.data.shape == (4,)


def test_embeddings_and_classes_are_lists(load: Any) -> None:
    (output,) = load(EMBEDS).embed("the tide", use_tqdm=False)
    assert len(output.outputs.embedding) == output.outputs.hidden_size == WIDTH
    assert sum(x * x for x in output.outputs.embedding) == pytest.approx(1)
    (output,) = load(CLASSIFIES).classify("the tide", use_tqdm=False)
    assert len(output.outputs.probs) == output.outputs.num_classes == 3
    assert sum(output.outputs.probs) == pytest.approx(1)


def test_rewards_are_the_models_own(load: Any) -> None:
    (output,) = load(REWARDS).reward([5, 6, 7], use_tqdm=False)
    assert output.outputs.data.shape == (3, 2)
    (output,) = load(LATE).reward([5, 6, 7], use_tqdm=False)
    assert output.outputs.data.shape == (3, WIDTH)
    with pytest.raises(RequestError, match="can embed, token_embed, not token_classify; .* task='reward'"):
        load(EMBEDS).reward("a")


@pytest.mark.parametrize("pooling", [RERANKS, EMBEDS, LATE])
def test_scores_come_for_each_pair(load: Any, pooling: Pooling) -> None:
    llm = load(pooling)
    one, other = llm.score("the tide", ["came in", "went out"], use_tqdm=False)
    (alone,) = llm.score("the tide", "went out", use_tqdm=False, truncate_prompt_tokens=-1)
    assert other.outputs.score == alone.outputs.score != one.outputs.score
    assert llm.llm_engine.tokenizer.decode(other.prompt_token_ids) == "the tidewent out"
    assert other.num_cached_tokens == (2 if pooling is RERANKS else 4)
    assert len(llm.score(["a", "b"], ["c", "d"], use_tqdm=False)) == 2


def test_a_template_for_pairs_may_be_a_file(load: Any, tmp_path: Path) -> None:
    (tmp_path / "pair.jinja").write_text("{{ query }} / {{ document }}")
    llm = load(RERANKS)
    (output,) = llm.score("a", "b", chat_template=tmp_path / "pair.jinja", use_tqdm=False)
    assert llm.llm_engine.tokenizer.decode(output.prompt_token_ids) == "a / b"


def test_texts_of_sentence_transformers_go_before_what_is_embedded(load: Any) -> None:
    llm = load(EMBEDS, texts=PooledTexts(prompts=(("plain", "say: "),), default_prompt="plain"))
    llm.embed(["the tide", [5, 6]], use_tqdm=False)
    llm.encode("the tide", use_tqdm=False)
    llm.encode("the tide", use_tqdm=False, pooling_task="token_embed")
    shown = [llm.llm_engine.tokenizer.decode(request.token_ids) for request in llm.llm_engine.seen]
    assert [shown[0], shown[2], shown[3]] == ["say: the tide", "say: the tide", "the tide"]
    assert llm.llm_engine.seen[1].token_ids == [5, 6]


@pytest.mark.parametrize(
    "options",
    [
        {"truncate_prompt_tokens": 3},
        {"pooling_params": PoolingParams(truncate_prompt_tokens=3)},
        {"tokenization_kwargs": {"truncate_prompt_tokens": 3}},
        {"tokenization_kwargs": {"truncation": True, "max_length": 3}},
        {"pooling_params": [PoolingParams()], "truncate_prompt_tokens": 3},
    ],
)
def test_long_prompts_are_cut_if_that_is_asked_for(load: Any, options: Any) -> None:
    (output,) = load(EMBEDS).embed([[*range(40)]], use_tqdm=False, **options)
    assert output.prompt_token_ids == [0, 1, 2]


def test_long_prompts_are_refused_cut_to_the_context_or_embedded_in_pieces(load: Any) -> None:
    long = [*range(70)]
    with pytest.raises(RequestError, match="prompt 0 has 70 tokens, but max_model_len=32 is the most"):
        load(EMBEDS).embed([long])
    (output,) = load(EMBEDS).embed([long], use_tqdm=False, tokenization_kwargs={"truncation": True})
    assert output.prompt_token_ids == long[:32]
    llm = load(EMBEDS, texts=PooledTexts(max_embed_len=100))
    short, whole = llm.embed([[5], long], use_tqdm=False)
    assert short.prompt_token_ids == [5] and whole.prompt_token_ids == long
    parts = [llm.embed([long[i : i + 32]], use_tqdm=False)[0].outputs.embedding for i in (0, 32, 64)]
    mean = np.average(np.array(parts), 0, [32, 32, 6])
    np.testing.assert_allclose(whole.outputs.embedding, mean / np.linalg.norm(mean), rtol=1e-5)


def test_special_tokens_can_be_left_out(tokenizer_folders: dict[str, Path], load: Any) -> None:
    llm = load(EMBEDS)
    llm.llm_engine.preparer.tokenizer = tokenizer = load_tokenizer(tokenizer_folders["sentencepiece"])
    (output,) = llm.embed("the tide", use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    assert output.prompt_token_ids == tokenizer.encode("the tide", add_special_tokens=False)
    assert llm.embed("the tide", use_tqdm=False)[0].prompt_token_ids[0] == tokenizer.bos_token_id


def test_the_bar_counts_prompts(load: Any) -> None:
    shown = io.StringIO()
    load(EMBEDS).embed(["a", "b"], use_tqdm=lambda **options: tqdm(**options, file=shown))
    assert "Processed prompts: 100%" in shown.getvalue() and "2/2" in shown.getvalue()


@pytest.mark.parametrize(
    ("call", "task"),
    [
        (lambda llm: llm.encode("a"), "embed"),
        (lambda llm: llm.encode("a", pooling_task="token_classify"), "reward"),
        (lambda llm: llm.embed("a"), "embed"),
        (lambda llm: llm.classify("a"), "classify"),
        (lambda llm: llm.reward("a"), "reward"),
        (lambda llm: llm.score("a", "b"), "score"),
    ],
)
def test_a_model_that_generates_says_how_to_load_it(load: Any, call: Any, task: str) -> None:
    message = f'for models that pool, and this one is loaded to generate; load it with task="{task}" '
    with pytest.raises(ConfigError, match=message):
        call(load(None))


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.generate("a"),
        lambda llm: llm.chat([{"role": "user", "content": "a"}]),
        lambda llm: llm.beam_search(["a"], __import__("vllm").BeamSearchParams(beam_width=2, max_tokens=2)),
    ],
)
def test_a_model_that_pools_says_what_to_call(load: Any, call: Any) -> None:
    with pytest.raises(ConfigError, match=r"pools and generates nothing; use LLM.embed, LLM.encode\(…, pooling_task="):
        call(load(EMBEDS))


def test_a_wrong_task_names_what_the_model_can(load: Any) -> None:
    with pytest.raises(RequestError, match="this model can classify, not embed; .* loaded with task='embed'"):
        load(CLASSIFIES).embed("a")
    with pytest.raises(RequestError, match="3 classes, and a score needs one class"):
        load(CLASSIFIES).score("a", "b")
    with pytest.raises(TypeError, match="pooling_params must be PoolingParams"):
        load(RERANKS).score("a", "b", pooling_params=[PoolingParams()])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lora_request": object()}, ConfigError, "lora_request is not supported"),
        ({"tokenization_kwargs": {"max_lenght": 3}}, RequestError, "Did you mean 'max_length'?"),
        ({"truncate_prompt_tokens": 0}, RequestError, "truncate_prompt_tokens must be at least 1, or -1"),
        ({"pooling_params": [PoolingParams()] * 2}, RequestError, "1 prompts but 2 pooling params"),
        ({"pooling_params": {"dimensions": 2}}, TypeError, "pooling_params must be PoolingParams"),
    ],
)
def test_arguments_without_sense_are_refused(load: Any, options: Any, error: Any, message: str) -> None:
    llm = load(EMBEDS)
    with pytest.raises(error, match=message):
        llm.embed("a", **options)
    assert not llm.llm_engine.seen


def test_a_prompt_that_failed_has_an_error_or_raises_it(load: Any) -> None:
    llm = load(EMBEDS)
    llm.llm_engine.fails = "not a finite number"
    (output,) = llm.encode("a", use_tqdm=False)
    assert output.error == "not a finite number" and output.outputs.data.numel() == 0
    for call in (lambda: llm.embed("a", use_tqdm=False), lambda: llm.score("a", "b", use_tqdm=False)):
        with pytest.raises(ModelError, match=r"prompt 0 \(request \d\): not a finite number"):
            call()
