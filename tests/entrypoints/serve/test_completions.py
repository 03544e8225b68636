"""POST /v1/completions: prompts of every kind, whole and streamed, and what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.entrypoints.serve.fakes import Client, FakeEngine, tokenizer

PATH = "/v1/completions"


def ask(client: Client | None = None, **body: Any) -> Any:
    answer = (client or Client()).post(PATH, {"prompt": "The tide", **body})
    assert answer.status == 200, answer.body
    return answer


def test_a_completion_has_the_shape_that_clients_know() -> None:
    reply = ask(model="acme/tiny").json
    assert reply["object"] == "text_completion" and reply["id"].startswith("cmpl-") and reply["model"] == "acme/tiny"
    assert reply["choices"] == [
        {"index": 0, "text": " and so on", "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    ]
    prompt, completion = len(tokenizer().encode("The tide")), len(tokenizer().encode(" and so on", False)) + 1
    assert reply["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@pytest.mark.parametrize("form", ["text", "ids", "texts", "many ids", "mixed"])
def test_a_prompt_may_be_a_text_or_ids_or_lists_of_both(form: str) -> None:
    ids = tokenizer().encode("The tide")
    prompt = {
        "text": "The tide",
        "ids": ids,
        "texts": ["The tide"] * 2,
        "many ids": [ids] * 2,
        "mixed": ["The tide", ids],
    }[form]
    client = Client()
    reply = ask(client, prompt=prompt, n=2, seed=1).json
    num_prompts = 1 if form in ("text", "ids") else 2
    assert [choice["index"] for choice in reply["choices"]] == list(range(2 * num_prompts))
    assert [request.token_ids for request in client.engine.seen] == [ids] * num_prompts
    assert reply["usage"]["prompt_tokens"] == num_prompts * len(ids)


def joined(events: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return texts


@given(
    script=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    n=st.integers(1, 3),
    echo=st.booleans(),
    logprobs=st.none() | st.integers(0, 3),
    together=st.integers(1, 4),
    stop=st.none() | st.text(st.characters(codec="utf-8"), min_size=1, max_size=2),
)
def test_a_stream_joined_equals_the_whole_however_it_is_cut(
    script: str, sizes: list[int], n: int, echo: bool, logprobs: int | None, together: int, stop: str | None
) -> None:
    engine = FakeEngine(lambda request, index: script + "!" * index)
    engine.sizes, engine.together = sizes, together
    client = Client(engine)
    body = {"prompt": ["The tide", "a"], "n": n, "max_tokens": 64, "echo": echo, "logprobs": logprobs, "stop": stop}
    whole = ask(client, **body).json
    events = ask(client, **body, stream=True, stream_options={"include_usage": True}).events
    assert joined(events) == {choice["index"]: choice["text"] for choice in whole["choices"]}
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs") if logprobs is not None else ():
        for choice in whole["choices"]:
            parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
            found = [entry for part in parts if part["logprobs"] for entry in part["logprobs"][name]]
            assert found == choice["logprobs"][name]
    reasons = {c["index"]: c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]}
    assert reasons == {choice["index"]: choice["finish_reason"] for choice in whole["choices"]}


def test_usage_comes_when_it_is_asked_for() -> None:
    assert all("usage" not in event for event in ask(stream=True).events)
    events = ask(stream=True, stream_options={"include_usage": True}).events
    assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
    running = ask(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}).events
    counts = [event["usage"]["completion_tokens"] for event in running]
    assert counts == sorted(counts) and counts[0] == 1
    forced = ask(Client(enable_force_include_usage=True), stream=True).events
    assert forced[-1]["usage"]["completion_tokens"] == counts[-1]
    details = ask(Client(enable_prompt_tokens_details=True)).json["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 3}


def test_echo_with_logprobs_covers_the_prompt() -> None:
    ids = tokenizer().encode("The tide")
    choice = ask(echo=True, logprobs=2, max_tokens=1).json["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(ids) + 1
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == [-1.5] * len(ids)
    assert choice["text"].startswith("The tide") and "".join(logprobs["tokens"]).endswith(choice["text"][-3:])
    assert ask(prompt=ids, echo=True).json["choices"][0]["text"] == "The tide and so on"


def test_no_token_may_be_asked_for_to_score_a_prompt() -> None:
    ids = tokenizer().encode("The tide")
    for stream in (False, True):
        answer = ask(echo=True, logprobs=1, max_tokens=0, stream=stream)
        choice = (answer.events if stream else [answer.json])[0]["choices"][0]
        assert choice["text"] == "The tide" and len(choice["logprobs"]["tokens"]) == len(ids)
    assert ask(echo=True, max_tokens=0).json["usage"]["completion_tokens"] == 0
    refused = Client().post(PATH, {"prompt": "a", "max_tokens": 0})
    assert (refused.status, refused.error["param"]) == (400, "max_tokens")


def test_logprobs_may_be_true_or_false() -> None:
    assert ask(logprobs=True).json["choices"] == ask(logprobs=1).json["choices"]
    assert ask(logprobs=False).json["choices"] == ask().json["choices"]


def test_logprobs_are_finite_and_tokens_may_be_ids() -> None:
    logprobs = ask(logprobs=5, max_tokens=1).json["choices"][0]["logprobs"]
    (token,) = tokenizer().encode(" and so on", False)[:1]
    assert min(logprobs["top_logprobs"][0].values()) == -9999.0
    for client, body in (
        (Client(), {"return_tokens_as_token_ids": True}),
        (Client(return_tokens_as_token_ids=True), {}),
    ):
        logprobs = ask(client, logprobs=1, max_tokens=1, **body).json["choices"][0]["logprobs"]
        assert logprobs["tokens"] == [f"token_id:{token}"]
        assert logprobs["top_logprobs"] == [{f"token_id:{token}": -1.5, "token_id:5": -0.5}]


def test_token_ids_and_prompt_logprobs_come_when_asked_for() -> None:
    ids = tokenizer().encode("The tide")
    choice = ask(return_token_ids=True, prompt_logprobs=1, max_tokens=2).json["choices"][0]
    assert choice["prompt_token_ids"] == ids and choice["token_ids"] == tokenizer().encode(" and so on", False)[:2]
    assert choice["prompt_logprobs"][0] is None
    assert choice["prompt_logprobs"][1][str(ids[1])] == {
        "logprob": -1.5,
        "rank": 2,
        "decoded_token": tokenizer().token_text(ids[1]),
    }
    events = ask(return_token_ids=True, max_tokens=2, stream=True).events
    assert events[0]["choices"][0]["prompt_token_ids"] == ids
    assert [t for event in events for t in event["choices"][0]["token_ids"]] == choice["token_ids"]
    refused = Client().post(PATH, {"prompt": "a", "prompt_logprobs": 1, "stream": True})
    assert (refused.status, refused.error["param"]) == (400, "prompt_logprobs")


def test_a_beam_search_gives_its_beams() -> None:
    client = Client(FakeEngine(lambda request, index: f" beam {index}"))
    reply = ask(client, use_beam_search=True, n=2, max_tokens=5, length_penalty=0.5).json
    assert [choice["text"] for choice in reply["choices"]] == [" beam 0", " beam 1"]
    beam = client.engine.seen[0].beam
    assert beam is not None and (beam.beam_width, beam.max_tokens, beam.length_penalty) == (2, 5, 0.5)
    for body, param in (({"logit_bias": {"3": 1}}, "logit_bias"), ({"echo": True, "logprobs": 1}, "prompt_logprobs")):
        refused = client.post(PATH, {"prompt": "a", "use_beam_search": True, **body})
        assert (refused.status, refused.error["param"]) == (400, param)


def test_parameters_reach_the_engine_and_defaults_are_the_models() -> None:
    engine = FakeEngine(default_sampling={"temperature": 0.25, "top_p": 0.5})
    client = Client(engine)
    ask(client)
    ask(client, temperature=1.5, stop=["x"], logit_bias={"7": 2.0}, priority=3, cache_salt="s", seed=4, max_tokens=None)
    plain, full = engine.seen
    assert (plain.params.temperature, plain.params.top_p, plain.params.max_tokens) == (0.25, 0.5, 16)
    assert (full.params.temperature, full.params.top_p, full.params.max_tokens) == (1.5, 0.5, None)
    assert (full.params.stop, full.params.logit_bias, full.seed) == (["x"], {7: 2.0}, 4)
    assert (full.priority, full.cache_salt) == (3, "s")
    assert Client().post(PATH, {"prompt": "a"}, headers={"X-Vllm-Priority": "x"}).status == 400


def test_per_request_metrics_come_with_the_flag() -> None:
    assert "metrics" not in ask().json
    metrics = ask(Client(enable_per_request_metrics=True)).json["metrics"]
    assert metrics["time_to_first_token_ms"] >= 0 and metrics["generation_time_ms"] >= 0


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "required"),
        ({"prompt": None}, "prompt", "expected"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": [1, "a"]}, "prompt", "index 1"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [99999]}, "prompt", "99999"),
        ({"prompt": [1] * 600}, "prompt", "600 tokens"),
        ({"prompt": "a", "max_tokens": "x"}, "max_tokens", "expected int"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens", "expected int"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", ">= 0"),
        ({"prompt": "a", "max_tokens": 2**70}, "max_tokens", "<= 9223372036854775807"),
        ({"prompt": "a", "temperature": -1}, "temperature", "at least 0"),
        ({"prompt": "a", "temperature": "hot"}, "temperature", "expected float"),
        ({"prompt": "a", "n": 0}, "n", "between 1"),
        ({"prompt": "a", "n": 10**6}, "n", "max_n=128"),
        ({"prompt": "a", "n": 2, "best_of": 1000}, "best_of", "max_n=128"),
        ({"prompt": "a", "top_p": 0}, "top_p", "(0, 1]"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "max_logprobs=20"),
        ({"prompt": "a", "stop": ["x"] * 65}, "stop", "max_stop_strings=64"),
        ({"prompt": "a", "stop": "x" * 1025}, "stop", "max_stop_length=1024"),
        ({"prompt": "a", "stop": [1]}, "stop[0]", "expected str"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(5000)}}, "logit_bias", "5,000 entries"),
        ({"prompt": "a", "seed": 2**80}, "seed", "<= 9223372036854775807"),
        ({"prompt": ["a"] * 1025}, "prompt", "max_prompts=1024"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "stream=true"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "suffix"),
        ({"prompt": "a", "guided_json": {}}, "guided_json", "structured output"),
        ({"prompt": "a", "request_id": "a b"}, "request_id", "128"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt", "empty"),
        ({"prompt": "\ud800"}, None, "JSON"),
    ],
)
def test_a_mistake_names_its_field(body: dict[str, Any], param: str | None, message: str) -> None:
    client = Client()
    error = client.post(PATH, body).error
    assert (error["code"], error["param"], error["type"]) == (400, param, "BadRequestError")
    assert message in error["message"], error["message"]
    assert client.engine.seen == []


def test_fields_that_mean_not_used_and_unknown_ones_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    ask(suffix=None, guided_json=None, truncation_side="left", metadata={"a": 1}, temprature=3)


def test_an_unknown_model_is_not_found() -> None:
    client = Client(served_model_name=["one", "two"])
    answer = client.post(PATH, {"prompt": "a", "model": "three"})
    assert (answer.status, answer.error["param"]) == (404, "model") and "one, two" in answer.error["message"]
    assert ask(client, model="two").json["model"] == "two"
    assert ask(client).json["model"] == "one"
