"""POST /v1/embeddings, /v2/embed, /pooling and /classify: shapes, forms of numbers, and what goes wrong."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.entrypoints.pooled import CLASSIFIES, EMBEDS, LATE, REWARDS, WIDTH, pooled
from tests.entrypoints.serve.fakes import Client, FakeEngine, tokenizer
from vllm.entrypoints.serve.pooling.numbers import BY_TYPE, as_base64, as_bytes, as_json
from vllm.errors import EngineDeadError
from vllm.pooling_params import PooledTexts, Pooling

PATH = "/v1/embeddings"
TEXT = "The tide"


def client(pooling: Pooling | None = EMBEDS, **settings: Any) -> Client:
    return Client(FakeEngine(pooling=pooling), **settings)


def ask(path: str = PATH, using: Client | None = None, **body: Any) -> Any:
    answer = (using or client()).post(path, {"input": TEXT, **body})
    assert answer.status == 200, answer.body
    return answer


def expected(using: Client) -> list[np.ndarray]:
    return [pooled(request, using.engine.model_config.pooling) for request in using.engine.seen]


def test_embeddings_have_the_shape_that_clients_know() -> None:
    using = client()
    reply = ask(using=using, model="acme/tiny", user="me").json
    count = len(tokenizer().encode(TEXT))
    assert reply["object"] == "list" and reply["id"].startswith("embd-") and reply["model"] == "acme/tiny"
    assert reply["usage"] == {"prompt_tokens": count, "total_tokens": count}
    (entry,) = reply["data"]
    assert (entry["index"], entry["object"]) == (0, "embedding")
    np.testing.assert_array_equal(np.array(entry["embedding"], np.float32), expected(using)[0])
    details = ask(using=client(enable_prompt_tokens_details=True)).json["usage"]["prompt_tokens_details"]
    assert details == {"cached_tokens": 2}


@pytest.mark.parametrize("form", ["text", "ids", "texts", "many ids", "mixed"])
def test_an_input_may_be_a_text_or_ids_or_lists_of_both(form: str) -> None:
    ids = tokenizer().encode(TEXT)
    given = {"text": TEXT, "ids": ids, "texts": [TEXT, "a"], "many ids": [ids, [5]], "mixed": [TEXT, [5]]}[form]
    using = client()
    reply = ask(using=using, input=given).json
    assert [entry["index"] for entry in reply["data"]] == list(range(1 if form in ("text", "ids") else 2))
    assert using.engine.seen[0].token_ids == ids
    np.testing.assert_array_equal(
        np.array([entry["embedding"] for entry in reply["data"]], np.float32), np.stack(expected(using))
    )


def test_a_conversation_is_one_input() -> None:
    using = client()
    messages = [{"role": "user", "content": "Hello"}]
    assert using.post(PATH, {"messages": messages}).status == 200
    assert using.post(PATH, {"messages": messages, "add_generation_prompt": True}).status == 200
    assert [request.prompt for request in using.engine.seen] == ["<user>Hello", "<user>Hello<assistant>"]


@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=5), elements=st.floats(-(2.0**99), 2.0**99, width=32))
)
def test_base64_bytes_and_json_hold_the_same_numbers(data: np.ndarray) -> None:
    np.testing.assert_array_equal(np.array(json.loads(bytes(as_json(data))), np.float32).reshape(data.shape), data)
    for order in ("little", "big"):
        read = np.frombuffer(
            base64.b64decode(as_base64(data, "float32", order)), f"{'<' if order == 'little' else '>'}f4"
        )  # type: ignore[arg-type]
        np.testing.assert_array_equal(read.reshape(data.shape), data)
    assert as_bytes(data) == data.tobytes()


@given(hnp.arrays(np.float32, 7, elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_bfloat16_is_the_nearest_there_is(data: np.ndarray) -> None:
    import torch

    found = np.frombuffer(as_bytes(data, "bfloat16"), np.int16)
    np.testing.assert_array_equal(found, torch.tensor(data).bfloat16().view(torch.int16).numpy())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("form", ["base64", "bytes", "bytes_only"])
def test_numbers_come_in_the_form_that_is_asked_for(dtype: str, form: str) -> None:
    using = client()
    answer = ask(using=using, input=[TEXT, "a"], encoding_format=form, embed_dtype=dtype, endianness="big")
    if form == "base64":
        raw = b"".join(base64.b64decode(entry["embedding"]) for entry in answer.json["data"])
    else:
        assert answer.headers["content-type"] == "application/octet-stream"
        raw = answer.body
    whole = np.concatenate(expected(using))
    if dtype == "bfloat16":
        found = (np.frombuffer(raw, ">u2").astype(np.uint32) << 16).view(np.float32)
    else:
        found = np.frombuffer(raw, f">f{4 if dtype == 'float32' else 2}")
    np.testing.assert_allclose(found, whole, atol={"float32": 0, "float16": 1e-3, "bfloat16": 4e-3}[dtype])
    assert ("metadata" in answer.headers) is (form == "bytes")
    if form == "bytes":
        metadata = json.loads(answer.headers["metadata"])
        assert [(entry["start"], entry["end"], entry["shape"]) for entry in metadata["data"]] == [
            (0, len(raw) // 2, [WIDTH]),
            (len(raw) // 2, len(raw), [WIDTH]),
        ]
        assert metadata["usage"]["prompt_tokens"] and metadata["data"][0]["endianness"] == "big"


def test_a_number_too_large_for_float16_is_told() -> None:
    with pytest.raises(ValueError, match="too large for float16"):
        as_bytes(np.array([1e6], np.float32), "float16")


@pytest.mark.parametrize("form", [None, "float", "base64"])
def test_the_openai_client_reads_embeddings(form: Any) -> None:
    using = client()
    options: Any = {} if form is None else {"encoding_format": form}

    class Transport(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answer = using.post(request.url.path, request.read())
            return httpx.Response(answer.status, headers=answer.headers, content=answer.body)

    with httpx.Client(transport=Transport()) as http:
        sync = openai.OpenAI(base_url="http://here/v1", api_key="none", http_client=http, max_retries=0)
        reply = sync.embeddings.create(model="acme/tiny", input=[TEXT, "a"], dimensions=4, **options)
        with pytest.raises(openai.BadRequestError, match="was trained for|trained for 2, 4"):
            sync.embeddings.create(model="acme/tiny", input="a", dimensions=5)
        with pytest.raises(openai.NotFoundError, match="the model 'other' does not exist"):
            sync.embeddings.create(model="other", input="a")

    async def ask_async() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=using.app)) as http:  # type: ignore[arg-type]
            ours = openai.AsyncOpenAI(base_url="http://here/v1", api_key="none", http_client=http, max_retries=0)
            return await ours.embeddings.create(model="acme/tiny", input=[TEXT, "a"], dimensions=4, **options)

    for found in (reply, asyncio.run(ask_async())):
        values = np.array(
            [
                entry.embedding
                if form != "base64" or isinstance(entry.embedding, list)
                else np.frombuffer(base64.b64decode(entry.embedding), np.float32)
                for entry in found.data
            ]
        )
        np.testing.assert_allclose(values, np.stack(expected(using)[:2]), rtol=1e-6)


def test_an_answer_may_carry_the_name_of_its_request() -> None:
    using = client(enable_request_id_headers=True)
    answer = ask(using=using, request_id="mine")
    assert answer.headers["x-request-id"] == "mine" and answer.json["id"] == "embd-mine"


def test_fields_reach_the_engine() -> None:
    using = client(Pooling(("embed",), "MEAN", texts=PooledTexts(prompts=(("query", "ask: "),))))
    ask(using=using, input="a", prompt_name="query", normalize=False, priority=3, cache_salt="s")
    ask(using=using, input="a", use_activation=False)
    using.post(PATH, {"input": "a"}, headers={"x-vllm-priority": "-2"})
    first, second, third = using.engine.seen
    assert (first.prompt, first.priority, first.cache_salt) == ("ask: a", 3, "s")
    assert first.pooling.activates is second.pooling.activates is False and third.pooling.activates is None
    assert first.pooling.skip_reading_prefix_cache and third.priority == -2 and third.prompt == "a"


def test_long_inputs_are_cut_where_it_is_asked_for() -> None:
    ids = [*range(5, 25)]
    using = client()
    ask(using=using, input=ids, truncate_prompt_tokens=3)
    ask(using=using, input=ids, truncate_prompt_tokens=3, truncation_side="left")
    ask(using=using, input=[5] * 600, truncate_prompt_tokens=-1)
    assert [request.token_ids for request in using.engine.seen[:2]] == [[5, 6, 7], [22, 23, 24]]
    assert len(using.engine.seen[2].token_ids) == 512


def test_long_inputs_are_embedded_in_pieces_if_the_model_may() -> None:
    using = client(Pooling(("embed",), "LAST", texts=PooledTexts(max_embed_len=2000)))
    reply = ask(using=using, input=[[5] * 1100, [6]]).json
    assert [len(request.token_ids) for request in using.engine.seen] == [512, 512, 76, 1]
    assert reply["usage"]["prompt_tokens"] == 1101 and len(reply["data"]) == 2
    np.testing.assert_allclose(np.linalg.norm(reply["data"][0]["embedding"]), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": None}, "input", "give either input or messages"),
        ({"messages": [{"role": "user", "content": "a"}]}, "input", "give either input or messages"),
        ({"input": []}, "input", "input is an empty list"),
        ({"input": ["a"] * 2049}, "input", "2,049 texts are more than max_inputs=2048"),
        ({"input": [5] * 513}, "input", "513 tokens, but max_model_len=512 is the most; .* truncate_prompt_tokens"),
        ({"input": [[5], "b", [4096]]}, "input", "prompt 2 has token id 4096"),
        ({"input": [True]}, "input", r"\[0\]|token ids"),
        ({"dimensions": 5}, "dimensions", "the model was trained for 2, 4"),
        ({"dimensions": 0}, "dimensions", "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format", "hex"),
        ({"prompt_name": "query"}, "prompt_name", "no prompt called 'query'; it has none at all"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1, or -1"),
        ({"cache_salt": ""}, "cache_salt", "cache_salt is empty"),
        ({"embed_dtype": "float16"}, "embed_dtype", "is for encoding_format base64, bytes"),
        ({"endianness": "big", "encoding_format": "float"}, "endianness", "is for encoding_format base64, bytes"),
        ({"data": {"a": 1}}, "data", "no processors of other data"),
        ({"request_id": "a b"}, "request_id", "make an id"),
    ],
)
def test_a_body_that_cannot_be_embedded_names_its_field(body: Any, param: str, message: str) -> None:
    using = client()
    answer = using.post(PATH, {"input": TEXT, **body})
    assert answer.status == 400 and not using.engine.seen
    assert answer.error["param"] is None or answer.error["param"].startswith(param)
    assert __import__("re").search(message, answer.error["message"]), answer.error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *((path, {"input": TEXT}) for path in (PATH, "/pooling", "/classify")),
        ("/score", {"text_1": TEXT, "text_2": TEXT}),
        ("/rerank", {"query": TEXT, "documents": [TEXT]}),
        ("/v2/embed", {"texts": [TEXT], "model": "acme/tiny"}),
    ],
)
def test_a_generative_model_says_that_it_is_one(path: str, body: Any) -> None:
    answer = client(None).post(path, body)
    assert answer.status == 404 and answer.error["type"] == "NotFoundError"
    assert f"acme/tiny is a generative model, and {path} is for models that pool" in answer.error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}),
        ("/invocations", {"prompt": "a"}),
    ],
)
def test_a_pooling_model_says_that_it_is_one(path: str, body: Any) -> None:
    answer = client().post(path, body)
    assert answer.status == 404
    assert "acme/tiny is a pooling model, which can embed, token_embed, and " in answer.json["error"]["message"]


def test_a_task_that_the_model_does_not_have_is_refused() -> None:
    for path, task in ((PATH, "embed"), ("/v2/embed", "embed")):
        answer = client(CLASSIFIES).post(path, {"input": "a", "texts": ["a"]})
        assert answer.status == 400 and f"this model can classify, not {task}" in answer.error["message"]
    answer = client().post("/classify", {"input": "a"})
    assert answer.status == 400 and "this model can embed, token_embed, not classify" in answer.error["message"]


def test_a_name_of_a_prompt_that_could_not_be_put_anywhere_is_refused() -> None:
    using = client(dataclasses.replace(EMBEDS, texts=PooledTexts(prompts=(("query", "ask: "),))))
    messages = [{"role": "user", "content": "a"}]
    answer = using.post(PATH, {"messages": messages, "prompt_name": "query"})
    assert answer.status == 400 and "the template's" in answer.error["message"]
    answer = using.post("/pooling", {"input": "a", "task": "token_embed", "prompt_name": "query"})
    assert answer.status == 400 and "embeddings of whole inputs" in answer.error["message"]
    assert using.post("/pooling", {"input": "a", "prompt_name": "query"}).status == 200
    assert using.engine.seen[-1].prompt == "ask: a"


# ── what ends a request ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_that_failed_fails_its_request() -> None:
    using = client()
    using.engine.fails_alone = "not a finite number"
    answer = using.post(PATH, {"input": ["a", "b"]})
    assert answer.status == 500
    assert answer.error["message"] == "the engine failed on prompt 0 of this request: not a finite number"
    using.engine.error = EngineDeadError("the engine died")
    assert using.post(PATH, {"input": ["a", "b"]}).status == 500


def test_a_client_that_leaves_aborts_all_rows() -> None:
    using = client()
    using.engine.pause = 30.0

    async def leave() -> None:
        await using.request("POST", PATH, {"input": ["a", "b", "c"]}, gone_after=0.05)

    asyncio.run(leave())
    assert len(using.engine.aborted) == 3 and not using.engine.finished


def test_large_answers_are_written_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from vllm.entrypoints.serve.pooling import embeddings

    writers: list[str] = []

    def note(data: Any, body: Any) -> Any:
        writers.append(threading.current_thread().name)
        return as_json(data)

    monkeypatch.setattr(embeddings, "written", note)
    using = client()
    ask(using=using, input="a")
    assert writers == [threading.main_thread().name]
    ask(using=using, input=["a"] * 1000)
    assert all(name.startswith("text") for name in writers[1:]) and len(writers) == 1001


# ── the other endpoints ─────────────────────────────────────────────────────────────────────────────────────────────


def test_pooling_gives_what_the_model_is_for_or_what_is_asked_for() -> None:
    using = client(REWARDS)
    reply = ask("/pooling", using).json
    assert reply["id"].startswith("pool-") and reply["data"][0]["object"] == "pooling"
    np.testing.assert_array_equal(np.array(reply["data"][0]["data"], np.float32), expected(using)[0])
    assert np.shape(reply["data"][0]["data"]) == (reply["usage"]["prompt_tokens"], 2)
    using = client()
    assert np.shape(ask("/pooling", using).json["data"][0]["data"]) == (WIDTH,)
    raw = ask("/pooling", using, task="token_embed", encoding_format="base64").json["data"][0]["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(raw), np.float32), expected(using)[1].ravel())
    answer = ask("/pooling", client(LATE), encoding_format="bytes")
    assert json.loads(answer.headers["metadata"])["data"][0]["shape"][1] == WIDTH


def test_classes_have_labels() -> None:
    using = client(CLASSIFIES)
    reply = ask("/classify", using, input=["a", "b"]).json
    assert reply["id"].startswith("classify-") and [entry["index"] for entry in reply["data"]] == [0, 1]
    for entry, data in zip(reply["data"], expected(using), strict=True):
        np.testing.assert_array_equal(np.array(entry["probs"], np.float32), data)
        assert entry["label"] == ["bad", "fair", "good"][int(data.argmax())] and entry["num_classes"] == 3
    assert ask("/classify", using, use_activation=False).status == 200
    assert using.engine.seen[-1].pooling.activates is False


def test_cohere_gets_embeddings_in_each_type() -> None:
    using = client()
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    body = {"texts": [TEXT, "a"], "model": "acme/tiny", "input_type": "search_query", "embedding_types": types}
    answer = using.post("/v2/embed", body)
    assert answer.status == 200, answer.body
    reply, data = answer.json, np.stack(expected(using))
    assert reply["texts"] == [TEXT, "a"] and reply["response_type"] == "embeddings_by_type" and reply["id"]
    count = sum(len(request.token_ids) for request in using.engine.seen)
    assert reply["meta"] == {"api_version": {"version": "2"}, "billed_units": {"input_tokens": count}}
    found = reply["embeddings"]
    np.testing.assert_array_equal(np.array(found["float"], np.float32), data)
    np.testing.assert_allclose(np.array(found["int8"]) / 127, data, atol=0.5 / 127)
    np.testing.assert_array_equal(np.array(found["uint8"]) - 128, found["int8"])
    np.testing.assert_array_equal(np.unpackbits(np.array(found["ubinary"], np.uint8), axis=1), data > 0)
    np.testing.assert_array_equal(np.array(found["binary"]) + 128, found["ubinary"])
    raw = [np.frombuffer(base64.b64decode(text), "<f4") for text in found["base64"]]
    np.testing.assert_array_equal(np.stack(raw), data)


@given(hnp.arrays(np.float32, 9, elements=st.floats(-(2.0**20), 2.0**20, width=32)))
def test_small_types_keep_to_their_ranges(data: np.ndarray) -> None:
    read = {name: json.loads(bytes(BY_TYPE[name](data))) for name in ("int8", "uint8", "binary", "ubinary")}  # type: ignore[arg-type]
    assert all(-127 <= value <= 127 for value in read["int8"]) and all(-128 <= value <= 127 for value in read["binary"])
    assert all(1 <= value <= 255 for value in read["uint8"]) and all(0 <= value <= 255 for value in read["ubinary"])


def test_cohere_texts_are_cut_unless_that_is_forbidden() -> None:
    using = client()
    long = "a b " * 600
    whole = tokenizer().encode(long)
    for cut, expected_ids in ((None, whole[:512]), ("END", whole[:512]), ("START", whole[-512:])):
        body = {"texts": [long], "truncate": cut, "output_dimension": 4}
        assert using.post("/v2/embed", body).status == 200
        assert using.engine.seen[-1].token_ids == expected_ids and using.engine.seen[-1].pooling.dimensions == 4
    answer = using.post("/v2/embed", {"texts": [long], "truncate": "NONE"})
    assert answer.status == 400 and answer.error["param"] == "texts"


def test_cohere_says_what_a_text_is_for() -> None:
    prompts = (("query", "ask: "), ("passage", "text: "), ("code", "code: "))
    using = client(Pooling(("embed",), "LAST", texts=PooledTexts(prompts=prompts)))
    for kind in ("search_query", "search_document", "clustering", "code", None):
        assert using.post("/v2/embed", {"texts": ["a"], "input_type": kind}).status == 200
    assert [request.prompt for request in using.engine.seen] == ["ask: a", "text: a", "a", "code: a", "a"]
    answer = using.post("/v2/embed", {"texts": ["a"], "input_type": "image"})
    assert answer.status == 400 and "none of search_query, search_document" in answer.error["message"]
    assert using.post("/v2/embed", {"texts": ["a"], "images": ["b"]}).error["param"] == "images"
    assert using.post("/v2/embed", {"texts": []}).error["param"] == "texts"


@pytest.mark.parametrize(
    ("pooling", "body", "prefix"),
    [
        (EMBEDS, {"input": "a"}, "embd-"),
        (EMBEDS, {"messages": [{"role": "user", "content": "a"}]}, "embd-"),
        (CLASSIFIES, {"input": ["a", "b"]}, "classify-"),
        (REWARDS, {"input": "a"}, "pool-"),
        (EMBEDS, {"text_1": "a", "text_2": "b"}, "score-"),
        (EMBEDS, {"queries": "a", "documents": ["b"]}, "score-"),
        (EMBEDS, {"query": "a", "documents": ["b"]}, "rerank-"),
    ],
)
def test_invocations_do_what_the_body_fits_and_the_model_is_for(pooling: Pooling, body: Any, prefix: str) -> None:
    answer = client(pooling).post("/invocations", body)
    assert answer.status == 200, answer.body
    assert answer.json["id"].startswith(prefix)


def test_invocations_of_a_generative_model_do_not_pool() -> None:
    assert client(None).post("/invocations", {"input": "a"}).status == 404
