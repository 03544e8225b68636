"""The battery, texts: prompts, stop and bad words, templates."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.entrypoints.serve.battery import names, refusal
from tests.entrypoints.serve.fakes import Client, tokenizer

COMPLETE, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
CONTROLS = "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff\ufffe\uffff\U0010ffff e\u0301 \u202eolleh"

# ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        ("", "prompt", "empty"),
        ([], "prompt", "empty"),
        ([""], "prompt", "prompt 0 is empty"),
        (["a", ""], "prompt", "prompt 1 is empty"),
        ([[]], "prompt", "prompt 0 is empty"),
        (["a", []], "prompt", "prompt 1 is empty"),
        ([5] * 512, "prompt", "512 tokens, but max_model_len=512 leaves room for 511"),
        ([[5], [5] * 512], "prompt", "prompt 1 has 512 tokens"),
        ([-1], "prompt", "token id -1 at index 0"),
        ([5, 3072], "prompt", "token id 3072 at index 1"),
        ([2**62], "prompt", "3,072 entries"),
        ("a" * 500_000, "prompt", "leaves room for 511"),
        ("\u0e01" * 100_000, "prompt", "leaves room for 511"),
        (" " * 500_000, "prompt", "leaves room for 511"),
        (["a"] * 1025, "prompt", "max_prompts=1024"),
        ([[5]] * 1025, "prompt", "max_prompts=1024"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_prompt_that_cannot_be_read_is_refused_before_the_engine_sees_it(
    prompt: Any, param: str, message: str
) -> None:
    client = Client()
    answer = client.post(COMPLETE, {"prompt": prompt, "max_tokens": 1})
    error = refusal(answer)
    assert answer.status == 400 and names(error, param) and message in error["message"], error
    assert client.engine.seen == []


@pytest.mark.parametrize(
    "raw", [rb'"\ud800"', rb'"\udc00 a"', rb'"a\ud83d\ud83d"', b'"\xed\xa0\x80"', b'"\xff"', b'"\x00"']
)
def test_what_is_no_text_is_no_json(raw: bytes) -> None:
    for path, name in ((COMPLETE, b"prompt"), ("/tokenize", b"prompt"), ("/v1/responses", b"input")):
        answer = Client().post(path, b'{"' + name + b'": ' + raw + b"}")
        assert answer.status == 400 and "not JSON" in refusal(answer)["message"]


@pytest.mark.parametrize(
    "text", [CONTROLS, "<|im_end|><|im_start|>system", "</s><s>[INST]", "{{ 7 * 7 }}{% for %}", "\N{PILE OF POO}" * 50]
)
def test_a_prompt_reaches_the_engine_as_it_is(text: str) -> None:
    client = Client()
    assert client.post(COMPLETE, {"prompt": text, "max_tokens": 1}).status == 200
    assert client.post(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1}).status == 200
    plain, chat = client.engine.seen
    assert plain.prompt == text and chat.prompt == f"<user>{text}<assistant>"
    for request in (plain, chat):
        assert tokenizer().decode(request.token_ids, False) == request.prompt
    assert client.post("/detokenize", {"tokens": plain.token_ids}).json == {"prompt": text}


def test_a_prompt_of_just_the_length_there_is_room_for_is_taken() -> None:
    client = Client()
    assert client.post(COMPLETE, {"prompt": [5] * 511, "max_tokens": 1}).status == 200
    longer = {"prompt": [5] * 600 + [7], "truncate_prompt_tokens": -1, "max_tokens": 1}
    assert client.post(COMPLETE, longer).status == 200
    assert [len(request.token_ids) for request in client.engine.seen] == [511, 511]
    assert client.engine.seen[1].token_ids[-1] == 7


def test_a_prompt_of_millions_of_characters_keeps_nobody_waiting() -> None:
    ended = []

    async def ask(client: Client, name: str, prompt: str) -> int:
        answer = await client.request("POST", COMPLETE, {"prompt": prompt, "max_tokens": 1})
        ended.append(name)
        return answer.status

    async def scene() -> list[int]:
        client = Client()
        huge = asyncio.create_task(ask(client, "huge", " " * 5_000_000))
        await asyncio.sleep(0)
        return [await ask(client, "small", "a") for _ in range(3)] + [await huge]

    assert asyncio.run(scene()) == [200, 200, 200, 400]
    assert ended == ["small", "small", "small", "huge"]


# ── stop and bad words ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": ["x"] * 100_000}, "stop"),
        ({"stop": "x" * 1025}, "stop"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["   "]}, "bad_words"),
        ({"bad_words": ["x"] * 4097}, "bad_words"),
        ({"bad_words": ["x"] * 100_000}, "bad_words"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_words_that_cannot_be_looked_for_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    for path, rest in ((COMPLETE, {"prompt": "a"}), (CHAT, {"messages": HELLO})):
        answer = Client().post(path, rest | body)
        assert answer.status == 400 and refusal(answer)["param"] == param, answer.body


@pytest.mark.parametrize(
    "body",
    [
        {"stop": []},
        {"stop": ["x" * 1024] * 64},
        {"stop": [CONTROLS, "\n", "\N{PILE OF POO}"]},
        {"bad_words": []},
        {"bad_words": [f"w{number}" for number in range(4096)]},
        {"bad_words": ["long " * 1000, CONTROLS, "\N{PILE OF POO}"]},
    ],
    ids=lambda value: str(value)[:24],
)
def test_as_many_words_as_the_limits_allow_are_taken(body: dict[str, Any]) -> None:
    client = Client()
    answer = client.post(COMPLETE, {"prompt": "a", **body})
    assert answer.status == 200 and answer.json["choices"][0]["text"] == " and so on", answer.body
    assert client.engine.seen[0].params.stop_strings == body.get("stop", [])


# ── templates ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "field", ["role", "name", "content", "reasoning_content", "x"], ids=lambda field: f"in the {field}"
)
def test_code_in_a_message_is_text(field: str) -> None:
    code = "{{ messages.__class__ }}{% raw %}{{ 7 * 7 }}{% endraw %}"
    client = Client()
    message = {"role": "user", "content": "a", field: code}
    assert client.post(CHAT, {"messages": [message], "max_tokens": 1}).status == 200
    assert client.engine.seen[0].prompt == f"<{message['role']}>{message['content']}<assistant>"


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_a_variable_of_the_template_cannot_be_set_twice(name: str) -> None:
    answer = Client().post(CHAT, {"messages": HELLO, "chat_template_kwargs": {name: []}})
    error = refusal(answer)
    assert answer.status == 400 and error["param"] == "chat_template_kwargs" and repr(name) in error["message"]


def test_a_variable_that_hides_a_function_hides_it_from_its_own_request_only() -> None:
    client = Client()
    hidden = {"raise_exception": 1, "range": 2, "namespace": 3, "self": 4, "loop": 5, "strftime_now": 6}
    assert client.post(CHAT, {"messages": HELLO, "chat_template_kwargs": hidden}).status == 200
    assert client.post(CHAT, {"messages": HELLO, "chat_template": "loud"}).status == 200
    assert client.engine.seen[1].prompt == "Hello!"
    assert client.post(CHAT, {"messages": HELLO}).status == 200
    assert client.engine.seen[0].prompt == client.engine.seen[2].prompt


@pytest.mark.parametrize(
    ("template", "param", "message"),
    [
        ("{% for a in range(9999999999) %}{% endfor %}", "messages", "Range too big"),
        ("{{ 'a' * 3000000 }}", "messages", "leaves room for 511"),
        ("{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}", "messages", "the chat template"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "messages", "nested too deeply"),
        ("{% include '/etc/passwd' %}", "messages", "the chat template"),
        ("{{ cycler.__init__.__globals__.os }}", "messages", "the chat template"),
    ],
)
def test_a_template_that_a_request_brings_harms_nobody(template: str, param: str, message: str) -> None:
    client = Client(trust_request_chat_template=True)
    answer = client.post(CHAT, {"messages": HELLO, "chat_template": template})
    error = refusal(answer)
    assert answer.status == 400 and error["param"] == param and message in error["message"], error
    assert client.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status == 200
