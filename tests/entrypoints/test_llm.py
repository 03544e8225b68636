"""`LLM` as people use it: prompts of every kind, parameters of every kind, mistakes, and what is left behind."""

from __future__ import annotations

import gc
import io
import operator
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tqdm import tqdm

import vllm
from vllm import LLM, BeamSearchParams, EngineArgs, LLMEngine, RequestOutput, SamplingParams, TextPrompt, TokensPrompt
from vllm.engine.detokenize import Detokenizer
from vllm.errors import ConfigError, EngineDeadError, ModelError, RequestError
from vllm.sampling_params import RequestOutputKind

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[..., Path]) -> Iterator[LLM]:
    with LLM(checkpoint("llama"), dtype="float32", max_logprobs=600) as model:
        yield model


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def run(llm: LLM, prompt: Any, **params: Any) -> vllm.CompletionOutput:
    params = {"temperature": 0, "max_tokens": 12, "ignore_eos": True} | params
    return llm.generate(prompt, SamplingParams(**params), use_tqdm=False)[0].outputs[0]


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_may_be_a_text_a_list_of_ids_or_a_dict_one_or_many(llm: LLM) -> None:
    ids = llm.get_tokenizer()("The tide").input_ids
    expected = llm.generate("The tide", GREEDY, use_tqdm=False)[0]
    assert expected.prompt == "The tide" and expected.prompt_token_ids == ids
    for prompt in (ids, TextPrompt(prompt="The tide"), TokensPrompt(prompt_token_ids=ids)):
        for form in (prompt, [prompt], [prompt, "and"]):
            found = llm.generate(form, GREEDY, use_tqdm=False)
            assert found[0].outputs[0].token_ids == expected.outputs[0].token_ids
            assert len(found) == (2 if form == [prompt, "and"] else 1)
    assert llm.generate(prompt_token_ids=[ids, ids], sampling_params=GREEDY, use_tqdm=False)[1].prompt_token_ids == ids


def test_the_bar_may_be_anything_like_tqdm(llm: LLM) -> None:
    bars = []

    def make(**options: Any) -> Any:
        bars.append(tqdm(**options, file=io.StringIO()))
        return bars[-1]

    llm.generate(["a", "b"], GREEDY, use_tqdm=make)
    assert (bars[0].n, bars[0].total, bars[0].desc) == (2, 2, "Processed prompts")


@pytest.mark.parametrize("name", ["lora_request", "prompt_adapter_request", "tokenization_kwargs"])
def test_arguments_of_missing_features_are_refused_by_name(llm: LLM, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not supported"):
        llm.generate("a", GREEDY, use_tqdm=False, **{name: {"a": 1}})
    assert llm.generate("a", GREEDY, use_tqdm=False, **{name: None})


def test_options_for_media_are_refused_by_a_model_that_takes_none(llm: LLM) -> None:
    with pytest.raises(RequestError, match="prompt 0 has 'mm_processor_kwargs': the model takes text only"):
        llm.generate("a", GREEDY, use_tqdm=False, mm_processor_kwargs={"do_resize": False})


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    each = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (1, 5, 3)]
    outputs = llm.generate(["a", "b", "c"], each, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [1, 5, 3]
    assert [output.request_id for output in outputs] == sorted((output.request_id for output in outputs), key=int)


@pytest.mark.parametrize(
    ("prompts", "params", "message"),
    [
        ("", GREEDY, "prompt 0 is empty"),
        ([], GREEDY, "empty"),
        (["a", []], GREEDY, "prompt 1"),
        ([[1, 512]], GREEDY, "token id 512 at index 1, but the model's vocabulary has 512 entries"),
        ([[1, -1]], GREEDY, "token id -1"),
        ("x" * 5000, GREEDY, "prompt 0 has .* tokens, but max_model_len=512 leaves room for 511"),
        (["a", "b"], [GREEDY], "2 prompts but 1"),
        ("a", SamplingParams(logprobs=601), "logprobs=601 is more than the vocabulary"),
        ("a", SamplingParams(logit_bias={512: 1.0}), "logit_bias holds token id 512"),
    ],
)
def test_a_mistake_is_named_before_anything_runs(llm: LLM, prompts: Any, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert not llm.llm_engine.has_work
    assert len(llm.llm_engine.outputs) == 0


@pytest.mark.parametrize("prompts", [None, 3, [None], [b"x"], [["a"]], {"text": "a"}])
def test_a_prompt_of_another_type_is_refused(llm: LLM, prompts: Any) -> None:
    with pytest.raises((TypeError, RequestError)):
        llm.generate(prompts, GREEDY, use_tqdm=False)


def test_a_prompt_as_long_as_the_room_is_taken_and_ends_with_the_context(llm: LLM) -> None:
    output = llm.generate([[5] * 511], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True), use_tqdm=False)[0]
    assert len(output.outputs[0].token_ids) == 1 and output.outputs[0].finish_reason == "length"
    with pytest.raises(RequestError, match="512 tokens"):
        llm.generate([[5] * 512], GREEDY, use_tqdm=False)


def test_a_long_prompt_can_be_truncated_from_the_left(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, truncate_prompt_tokens=3)
    assert llm.generate([list(range(2, 30))], params, use_tqdm=False)[0].prompt_token_ids == [27, 28, 29]


# ── parameters ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_stop_string_ends_the_text_before_it_or_with_it(llm: LLM) -> None:
    whole = run(llm, "The tide", max_tokens=20).text
    stop = whole[5:8]
    cut = run(llm, "The tide", max_tokens=20, stop=stop)
    assert cut.text == whole[: whole.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert len(cut.token_ids) < 20
    kept = run(llm, "The tide", max_tokens=20, stop=[stop, "never"], include_stop_str_in_output=True)
    assert kept.text == whole[: whole.index(stop) + len(stop)]


def test_a_stop_token_ends_the_output_and_is_not_part_of_its_text(llm: LLM) -> None:
    whole = run(llm, "The tide")
    token = whole.token_ids[4]
    first = whole.token_ids.index(token)
    cut = run(llm, "The tide", stop_token_ids=[token])
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", token)
    assert whole.text.startswith(cut.text)
    assert cut.text == llm.llm_engine.tokenizer.decode(cut.token_ids[:-1])  # type: ignore[union-attr]
    late = run(llm, "The tide", stop_token_ids=[token], min_tokens=first + 2)
    assert token not in late.token_ids[: first + 2]


def test_allowed_banned_biased_and_processed_tokens(llm: LLM) -> None:
    assert set(run(llm, "a", allowed_token_ids=[7, 9]).token_ids) <= {7, 9}
    assert set(run(llm, "a", logit_bias={11: 100.0}).token_ids) == {11}
    first = run(llm, "a").token_ids[0]
    seen: list[int] = []

    def ban(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        seen.append(len(output))
        logits[first] = -torch.inf
        return logits

    assert first not in run(llm, "a", logits_processors=[ban]).token_ids
    assert seen == list(range(12))
    word = llm.llm_engine.tokenizer.decode([first])  # type: ignore[union-attr]
    if word.strip():
        assert run(llm, "a", bad_words=[word]).token_ids[0] != first


def test_penalties_and_temperature_change_what_is_chosen(llm: LLM) -> None:
    loop = run(llm, [7, 7, 7, 7], max_tokens=24, logit_bias={7: 100.0})
    assert set(loop.token_ids) == {7}
    assert (
        run(llm, [7, 8], max_tokens=24).token_ids != run(llm, [7, 8], max_tokens=24, repetition_penalty=1.8).token_ids
    )
    drawn = [run(llm, [7, 8], temperature=1.5, seed=seed).token_ids for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert run(llm, [7, 8], temperature=1.5, top_k=1).token_ids == run(llm, [7, 8]).token_ids


def test_n_outputs_of_best_of(llm: LLM) -> None:
    params = {"temperature": 1.0, "seed": 3, "max_tokens": 6, "ignore_eos": True}
    (all_five,) = llm.generate("The", SamplingParams(n=5, logprobs=0, **params), use_tqdm=False)
    assert [completion.index for completion in all_five.outputs] == list(range(5))
    ranked = sorted(all_five.outputs, key=lambda completion: -(completion.cumulative_logprob or 0))
    (best,) = llm.generate("The", SamplingParams(n=2, best_of=5, **params), use_tqdm=False)
    assert [completion.token_ids for completion in best.outputs] == [completion.token_ids for completion in ranked[:2]]
    assert [completion.index for completion in best.outputs] == [0, 1]
    assert best.outputs[0].logprobs is None and best.outputs[0].cumulative_logprob is not None


def test_logprobs_of_the_whole_vocabulary_and_of_none_but_the_chosen(llm: LLM) -> None:
    completion = run(llm, "a", max_tokens=2, logprobs=-1)
    assert completion.logprobs is not None
    assert [len(position) for position in completion.logprobs] == [512, 512]
    assert sum(torch.tensor([entry.logprob for entry in completion.logprobs[0].values()]).exp()) == pytest.approx(
        1, abs=1e-4
    )
    chosen = run(llm, "a", max_tokens=2, logprobs=0)
    assert [list(position) for position in chosen.logprobs or ()] == [[token] for token in chosen.token_ids]


def test_without_detokenizing_there_is_no_text(llm: LLM) -> None:
    completion = run(llm, "a", detokenize=False)
    assert completion.text == "" and len(completion.token_ids) == 12


def test_default_parameters_come_from_the_generation_config(checkpoint: Callable[..., Path]) -> None:
    overrides = {"temperature": 0.25, "top_p": 0.5, "max_new_tokens": 7}
    with LLM(checkpoint("llama"), override_generation_config=overrides) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_p, params.max_tokens) == (0.25, 0.5, 7)
    with LLM(checkpoint("llama"), generation_config="vllm", override_generation_config=overrides) as llm:
        assert llm.get_default_sampling_params() == SamplingParams(temperature=0.25, top_p=0.5, max_tokens=7)
    with LLM(checkpoint("llama"), generation_config="vllm") as llm:
        assert llm.get_default_sampling_params() == SamplingParams()


# ── chat, beams, steps ──────────────────────────────────────────────────────────────────────────────────────────────


def test_chat_renders_one_or_many_conversations(llm: LLM) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    one = llm.chat(hello, GREEDY, use_tqdm=False)
    assert one[0].prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert texts(llm.chat([hello, hello], GREEDY, use_tqdm=False)) == texts(one) * 2
    own = llm.chat(hello, GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }}!")
    assert own[0].prompt == "Hello!"


def test_beam_search_returns_the_prompt_with_each_beam(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5, ignore_eos=True)
    found = llm.beam_search(["The tide", {"prompt_token_ids": [5, 6]}], params, concurrency_limit=1)
    assert [len(output.sequences) for output in found] == [3, 3]
    best = found[0].sequences[0]
    assert (best.text or "").startswith("The tide") and len(best.logprobs) == 5
    assert found[1].sequences[0].tokens[:2] == [5, 6]
    assert [s.cum_logprob for s in found[0].sequences] == sorted(
        (s.cum_logprob for s in found[0].sequences), reverse=True
    )
    beams = llm.generate("The tide", params, use_tqdm=False)[0].outputs
    assert [s.tokens[-5:] for s in found[0].sequences] == [beam.token_ids for beam in beams]


def test_the_text_of_a_beam_shows_what_is_asked_for(checkpoint: Callable[..., Path]) -> None:
    ends = list(range(3, 512, 7))
    overrides = {"override_generation_config": {"eos_token_id": ends}}
    with LLM(checkpoint("llama"), dtype="float32", **overrides) as llm:  # type: ignore[arg-type]
        decode = llm.llm_engine.tokenizer.decode  # type: ignore[union-attr]
        for keep in (True, False):
            for skip in (True, False):
                params = BeamSearchParams(
                    beam_width=4, max_tokens=9, include_stop_str_in_output=keep, skip_special_tokens=skip
                )
                (output,) = llm.beam_search([{"prompt_token_ids": [0, 5, 6]}], params)
                assert any(beam.finish_reason == "stop" for beam in output.sequences)
                for beam in output.sequences:
                    cut = beam.finish_reason == "stop" and not keep
                    assert beam.text == decode(beam.tokens[:-1] if cut else beam.tokens, skip)
                    assert (beam.text or "").startswith("<|end|>") is not skip


def test_a_beam_search_without_sense_is_refused(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=2)
    with pytest.raises(RequestError, match="concurrency_limit must be at least 1, or None for no limit, got -1"):
        llm.beam_search(["a"], params, concurrency_limit=-1)
    with pytest.raises(RequestError, match="prompt 1 has 600 tokens"):
        llm.beam_search([[5], [5] * 600], params, concurrency_limit=1)
    with pytest.raises(TypeError, match="must be BeamSearchParams, got SamplingParams"):
        llm.beam_search(["a"], GREEDY)  # type: ignore[arg-type]


def test_only_a_prefix_hit_counts_as_cached(checkpoint: Callable[..., Path]) -> None:
    with LLM(checkpoint("llama"), dtype="float32", block_size=8) as llm:
        params = SamplingParams(n=3, max_tokens=3, temperature=1.0, seed=1)
        found = [llm.generate([list(range(3, 22))], params, use_tqdm=False)[0] for _ in range(2)]
    assert [output.num_cached_tokens for output in found] == [0, 16]


@pytest.mark.parametrize("length_penalty", [-2000, 2000, float("inf"), float("nan")])
def test_a_length_penalty_that_overflows_is_refused(length_penalty: float) -> None:
    with pytest.raises(RequestError, match=r"length_penalty must be in \[-32, 32\]"):
        BeamSearchParams(beam_width=2, max_tokens=5, length_penalty=length_penalty)


@pytest.mark.parametrize("length_penalty", [-32, 32.0])
def test_the_largest_length_penalty_gives_beams(llm: LLM, length_penalty: float) -> None:
    params = BeamSearchParams(beam_width=2, max_tokens=40, length_penalty=length_penalty, ignore_eos=True)
    assert len(llm.beam_search(["The tide"], params)[0].sequences) == 2


def test_an_engine_streams_deltas_that_add_up(checkpoint: Callable[..., Path]) -> None:
    args = EngineArgs(model=str(checkpoint("llama")), dtype="float32")
    with LLMEngine.from_engine_args(args) as engine:
        for kind in RequestOutputKind:
            params = SamplingParams(temperature=0, max_tokens=9, output_kind=kind, ignore_eos=True, n=1)
            engine.add_request(kind.name, "The tide", params)
        seen: dict[str, list[RequestOutput]] = {kind.name: [] for kind in RequestOutputKind}
        while engine.has_unfinished_requests():
            for output in engine.step():
                seen[output.request_id].append(output)
        final = seen["FINAL_ONLY"]
        assert len(final) == 1 and final[0].finished
        expected = final[0].outputs[0]
        assert len(seen["CUMULATIVE"]) == len(seen["DELTA"]) == 9
        assert seen["CUMULATIVE"][-1].outputs[0].text == expected.text
        assert [len(output.outputs[0].token_ids) for output in seen["CUMULATIVE"]] == list(range(1, 10))
        assert "".join(output.outputs[0].text for output in seen["DELTA"]) == expected.text
        assert [token for output in seen["DELTA"] for token in output.outputs[0].token_ids] == expected.token_ids
        engine.add_request("gone", "The tide", GREEDY)
        engine.step()
        engine.abort_request("gone")
        assert not engine.has_work and engine.step() == []
        with pytest.raises(RequestError, match="in use"):
            engine.add_request("twice", "a", GREEDY)
            engine.add_request("twice", "a", GREEDY)


# ── mistakes at the start ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_modle_len": 5}, TypeError, "Did you mean 'max_model_len'"),
        ({"dtype": "fp17"}, ConfigError, "dtype='fp17' is not one of"),
        ({"max_model_len": 513}, ConfigError, "max_model_len=513 is more than the 512"),
        ({"pipeline_parallel_size": 2}, ConfigError, "pipeline_parallel_size=2 is not supported"),
        ({"quantization": "awq"}, ConfigError, "quantization='awq' is not one of"),
        ({"quantization": "fp8"}, ConfigError, "quantization='fp8' can't be used: fp8 is for GPUs; use int8"),
        ({"kv_cache_memory_bytes": 1000}, ConfigError, "not enough memory: one sequence of max_model_len=512 needs"),
        ({"gpu_memory_utilization": 1e-9}, ConfigError, "not enough memory: .* gpu_memory_utilization"),
        ({"num_gpu_blocks_override": 5}, ConfigError, "needs 33 blocks"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 100}, ConfigError, "raise it to 512"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs=0"),
        ({"max_logprobs": -2}, ConfigError, "max_logprobs=-2"),
        ({"task": "transcription"}, ConfigError, "task=.transcription.: LlamaForCausalLM takes no sounds"),
        ({"device": "cuda"}, ConfigError, "device='cuda' can't be used"),
        ({"generation_config": "no/such/folder"}, ConfigError, "generation_config='no/such/folder' is no folder"),
        ({"tokenizer": "no/such/folder/anywhere"}, ModelError, "no such directory"),
    ],
)
def test_what_cannot_work_is_refused_at_the_start(
    checkpoint: Callable[..., Path], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LLM(checkpoint("llama"), **options)


@pytest.mark.parametrize(
    "size", ["vocab_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "max_position_embeddings"]
)
def test_a_size_below_one_is_refused_by_name(checkpoint: Callable[..., Path], size: str) -> None:
    value = 0 if size.startswith("num_") else -8
    with pytest.raises(ModelError, match=f"{size}={value} must be at least 1"):
        LLM(checkpoint("llama"), hf_overrides={size: value})


def test_options_of_the_other_era_are_taken(checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    options = {"task": "generate", "swap_space": 4, "tensor_parallel_size": 1, "enforce_eager": True, "seed": 1}
    with LLM(model=str(checkpoint("llama")), tokenizer=None, **options) as llm:
        assert llm.llm_engine.model_config.max_model_len == 512


def test_calls_from_several_threads_run_one_after_the_other(llm: LLM) -> None:
    prompts = ["a", "The tide", "came in"]
    expected = [texts(llm.generate([prompt] * 3, GREEDY, use_tqdm=False)) for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            found = pool.map(lambda prompt: texts(llm.generate([prompt] * 3, GREEDY, use_tqdm=False)), prompts)
            assert list(found) == expected
    llm.llm_engine.scheduler.check()


# ── nothing is left ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [ZeroDivisionError("in the third step"), KeyboardInterrupt()])
def test_an_exception_in_a_step_reaches_the_caller_and_the_engine_lives_on(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    runner = llm.llm_engine.core.executor.runner  # type: ignore[union-attr]
    hidden, calls = runner.hidden.compute, []

    def fail(num_tokens: int) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return hidden(num_tokens)

    expected = texts(llm.generate(["a", "The tide"], GREEDY, use_tqdm=False))
    monkeypatch.setattr(runner.hidden, "compute", fail)
    with pytest.raises(type(error)) as caught:
        llm.generate(["a", "The tide"], GREEDY, use_tqdm=False)
    assert caught.value is error
    monkeypatch.undo()
    llm.llm_engine.scheduler.check()
    assert not llm.llm_engine.has_work and len(llm.llm_engine.outputs) == 0
    assert texts(llm.generate(["a", "The tide"], GREEDY, use_tqdm=False)) == expected


@pytest.mark.parametrize(
    "place", ["scheduler._dispatch", "scheduler.cache.pools[0].release", "core.executor.execute", "outputs.process"]
)
def test_an_interrupt_between_any_two_instructions_leaves_a_whole_engine(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    prompts = ["a", "The tide", "came in"]
    expected = texts(llm.generate(prompts, GREEDY, use_tqdm=False))
    owner, _, name = place.rpartition(".")
    thing = operator.attrgetter(owner.partition("[")[0])(llm.llm_engine)
    thing = thing[0] if "[" in owner else thing
    method, calls = getattr(thing, name), []

    def interrupt(*arguments: Any) -> Any:
        calls.append(method(*arguments))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(thing, name, interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts, GREEDY, use_tqdm=False)
    monkeypatch.undo()
    llm.llm_engine.scheduler.check()
    assert not llm.llm_engine.has_work and len(llm.llm_engine.outputs) == 0
    assert texts(llm.generate(prompts, GREEDY, use_tqdm=False)) == expected


@pytest.mark.parametrize("error", [ZeroDivisionError("in a decoder"), KeyboardInterrupt()])
def test_an_exception_in_the_detokenizer_ends_the_requests_whose_text_is_lost(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    engine, push, calls = llm.llm_engine, Detokenizer.push, []

    def fail(detokenizer: Detokenizer, token_ids: list[int]) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise error
        return push(detokenizer, token_ids)

    monkeypatch.setattr(Detokenizer, "push", fail)
    for name in ("x", "y", "z"):
        engine.add_request(name, "The tide", GREEDY)
    engine.step()
    with pytest.raises(type(error)) as caught:
        engine.step()
    assert caught.value is error
    engine.scheduler.check()
    assert not engine.has_work and len(engine.outputs) == 0


def test_a_failing_logits_processor_fails_its_request_alone(llm: LLM) -> None:
    def fail(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        raise ValueError("no")

    alone = run(llm, "The tide").token_ids
    bad = SamplingParams(temperature=0, max_tokens=12, logits_processors=[fail])
    good = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    outputs = llm.generate(["The tide", "The tide"], [bad, good], use_tqdm=False)
    assert outputs[0].outputs[0].finish_reason == "error"
    assert outputs[1].outputs[0].token_ids == alone


def test_an_output_that_failed_is_not_the_best_of_several(llm: LLM) -> None:
    calls = []

    def fail_once(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        calls.append(output)
        if len(calls) == 2:
            raise ValueError("no")
        return logits

    params = SamplingParams(n=2, best_of=3, seed=1, max_tokens=4, ignore_eos=True, logits_processors=[fail_once])
    best = llm.generate("The tide", params, use_tqdm=False)[0].outputs
    assert [output.finish_reason for output in best] == ["length", "length"]


def test_nan_logits_fail_one_row_and_leave_nothing_in_the_cache(checkpoint: Callable[..., Path]) -> None:
    with LLM(checkpoint("llama"), dtype="float32", num_gpu_blocks_override=40) as llm:
        expected = run(llm, list(range(20, 90))).token_ids
        table = llm.llm_engine.core.executor.runner.hidden.model.entry.tokens.matrix  # type: ignore[union-attr]
        weight = table.content if hasattr(table, "content") else table.weight
        saved = weight[3].clone()
        with torch.inference_mode():
            weight[3] = torch.nan
        outputs = llm.generate([[3, 5, 7], [5, 7]], GREEDY, use_tqdm=False)
        assert outputs[0].outputs[0].finish_reason == "error"
        with torch.inference_mode():
            weight[3] = saved
        llm.reset_prefix_cache()
        for _ in range(4):
            assert run(llm, list(range(20, 90))).token_ids == expected


def test_close_leaves_no_memory_thread_process_or_file(checkpoint: Callable[..., Path]) -> None:
    process = psutil.Process()

    def life() -> weakref.ref[Any]:
        llm = LLM(checkpoint("llama"), dtype="float32", kv_cache_memory_bytes=64 << 20)
        llm.generate(["a"] * 4, GREEDY, use_tqdm=False)
        model = weakref.ref(llm.llm_engine.core.executor.runner.hidden.model)  # type: ignore[union-attr]
        llm.close()
        with pytest.raises(EngineDeadError, match="closed"):
            llm.generate("a", GREEDY, use_tqdm=False)
        return model

    life()
    gc.collect()
    before = (
        threading.active_count(),
        process.num_threads(),
        len(process.children()),
        len(os.listdir("/proc/self/fd")),
    )
    size = process.memory_info().rss
    models = [life() for _ in range(3)]
    gc.collect()
    after = (threading.active_count(), process.num_threads(), len(process.children()), len(os.listdir("/proc/self/fd")))
    assert after == before
    assert [model() for model in models] == [None] * 3
    assert process.memory_info().rss - size < 32 << 20


def test_many_requests_leave_the_cache_whole(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=1 + i % 5, n=1 + i % 3, temperature=1.0, seed=i) for i in range(200)]
    llm.generate([[3 + i % 50] * (1 + i % 40) for i in range(200)], params, use_tqdm=False)
    llm.llm_engine.scheduler.check()
    pools = llm.llm_engine.scheduler.cache.pools
    assert all(pool.num_free == pool.num_usable for pool in pools)
