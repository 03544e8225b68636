"""Events in, outputs out."""

from __future__ import annotations

from vllm.engine.output_processor import OutputProcessor
from vllm.messages import EngineRequest, Event, TokenLogprobs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams


def at(logprob: float) -> TokenLogprobs:
    return TokenLogprobs(logprob, 1, [], [])


def processed(processor: OutputProcessor, *events: Event) -> list[RequestOutput]:
    outputs, stopped = processor.process(events)
    assert stopped == []
    return outputs


def test_deltas_of_several_outputs_carry_what_is_new_and_the_prompt_once() -> None:
    processor = OutputProcessor(None)
    params = SamplingParams(n=2, logprobs=0, prompt_logprobs=0, output_kind=RequestOutputKind.DELTA)
    processor.add(EngineRequest("a", [5, 6, 7], params))
    assert processed(processor, Event("a", 0, [], prompt_logprobs=[at(-1.0)])) == [], "a part of the prompt is no news"
    (first,) = processed(processor, Event("a", 0, [1], logprobs=[at(-0.5)], prompt_logprobs=[at(-2.0)]))
    assert [completion.index for completion in first.outputs] == [0]
    assert first.prompt_logprobs is not None
    assert [entry and list(entry) for entry in first.prompt_logprobs] == [None, [6], [7]]
    events = [Event("a", 0, [2], logprobs=[at(-1.0)]), Event("a", 1, [3], logprobs=[at(-0.25)])]
    (second,) = processed(processor, *events)
    assert [(completion.index, completion.token_ids) for completion in second.outputs] == [(0, [2]), (1, [3])]
    assert [len(completion.logprobs or ()) for completion in second.outputs] == [1, 1]
    assert [completion.cumulative_logprob for completion in second.outputs] == [-1.5, -0.25]
    assert second.prompt_logprobs is None and not second.finished
    ends = [Event("a", index, [4], logprobs=[at(0.0)], finish_reason="length") for index in (0, 1)]
    (last,) = processed(processor, *ends)
    assert last.finished and len(processor) == 0


def test_an_error_ends_one_output_and_says_why() -> None:
    processor = OutputProcessor(None)
    processor.add(EngineRequest("a", [5], SamplingParams(n=2)))
    processed(processor, Event("a", 0, [], finish_reason="error", error="no numbers"), Event("a", 1, [8]))
    (output,) = processed(processor, Event("a", 1, [9], finish_reason="length"))
    assert [completion.finish_reason for completion in output.outputs] == ["error", "length"]
    assert output.outputs[0].stop_reason == "no numbers"
    assert output.outputs[1].token_ids == [8, 9]


def test_news_of_an_aborted_request_is_passed_over() -> None:
    processor = OutputProcessor(None)
    processor.add(EngineRequest("a", [5], SamplingParams()))
    processor.abort("a")
    assert processed(processor, Event("a", 0, [1])) == []
