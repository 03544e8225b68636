"""The battery, values: every field of every body with every wrong type, and every number with every wrong value."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from tests.entrypoints.serve.battery import names, refusal
from tests.entrypoints.serve.fakes import Client
from vllm.entrypoints.serve.anthropic.protocol import CountTokensRequest, MessagesRequest
from vllm.entrypoints.serve.protocol import (
    BatchChatRequest,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from vllm.entrypoints.serve.responses.protocol import ResponsesRequest

ROOT = Path(__file__).parents[3]
HELLO = [{"role": "user", "content": "Hello"}]
COMPLETE, CHAT, RESPOND = "/v1/completions", "/v1/chat/completions", "/v1/responses"
BODIES: dict[str, tuple[type[msgspec.Struct], dict[str, Any]]] = {
    COMPLETE: (CompletionRequest, {"prompt": "a"}),
    CHAT: (ChatRequest, {"messages": HELLO}),
    f"{CHAT}/batch": (BatchChatRequest, {"messages": [HELLO]}),
    RESPOND: (ResponsesRequest, {"input": "a"}),
    "/v1/messages": (MessagesRequest, {"messages": HELLO, "max_tokens": 4}),
    "/v1/messages/count_tokens": (CountTokensRequest, {"messages": HELLO}),
    "/tokenize": (TokenizeRequest, {"prompt": "a"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [5]}),
}


def test_every_test_that_the_documentation_names_is_there() -> None:
    named = re.findall(r"`(\w+)::(\w{9,})`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 40
    for file, name in named:
        found = [path for path in (ROOT / "tests").rglob(f"test_{file}.py") if f"def test_{name}(" in path.read_text()]
        assert found, f"no test_{file}.py has test_{name}"


# ── types ───────────────────────────────────────────────────────────────────────────────────────────────────────────

VALUES: dict[str, Any] = {
    "int": 7,
    "huge": 2**70,
    "float": 1.5,
    "bool": True,
    "text": "x",
    "list": [[{}]],
    "object": {"a": [None]},
    "null": None,
}


def taken(kind: inspect.Type) -> set[str]:
    """Return which of VALUES a type takes, or may take."""
    match kind:
        case inspect.Metadata(inner):
            return taken(inner)
        case inspect.UnionType(kinds):
            return set().union(*map(taken, kinds))
        case inspect.IntType():
            return {"int"}
        case inspect.FloatType():
            return {"int", "float", "huge"}
        case inspect.BoolType():
            return {"bool"}
        case inspect.StrType():
            return {"text"}
        case inspect.NoneType():
            return {"null"}
        case inspect.ListType(item):
            return {"list"} if taken(item) & {"list"} else set()
        case inspect.DictType(_, value):
            return {"object"} if taken(value) & {"list"} else set()
        case inspect.StructType():
            return {"object"}
        case inspect.AnyType():
            return set(VALUES)
    return set()


@pytest.mark.parametrize("path", BODIES)
def test_a_value_of_a_wrong_type_is_refused_by_the_name_of_its_field(path: str) -> None:
    kind, body = BODIES[path]
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)

    async def all_of_them() -> int:
        client, count = Client(), 0
        for field in info.fields:
            for name in VALUES.keys() - taken(field.type):
                answer = await client.request("POST", path, body | {field.encode_name: VALUES[name]})
                assert answer.status == 400, (field.encode_name, VALUES[name], answer.body)
                assert names(refusal(answer, path), field.encode_name), (field.encode_name, VALUES[name], answer.body)
                count += 1
        assert client.engine.seen == [] and client.server.num_running == 0
        return count

    assert asyncio.run(all_of_them()) >= 4 * len(info.fields)


@pytest.mark.parametrize("path", BODIES)
def test_null_is_the_default_of_what_is_not_required_and_nothing_else_may_be_missing(path: str) -> None:
    kind, body = BODIES[path]
    fields = msgspec.structs.fields(kind)
    nothing = {field.encode_name: None for field in fields if not field.required}
    answer = Client().post(path, nothing | body)
    assert answer.status == 200, answer.body
    for field in fields:
        if field.required:
            answer = Client().post(path, {name: value for name, value in body.items() if name != field.name})
            assert answer.status == 400 and names(refusal(answer, path), field.encode_name)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETE, {"prompt": ["a", None]}, "prompt[1]"),
        (COMPLETE, {"prompt": [[1, True]]}, "prompt[0][1]"),
        (COMPLETE, {"prompt": {"text": "a"}}, "prompt"),
        (COMPLETE, {"prompt": "a", "stop": ["a", None]}, "stop[1]"),
        (COMPLETE, {"prompt": "a", "stop_token_ids": [1, 2.0]}, "stop_token_ids[1]"),
        (COMPLETE, {"prompt": "a", "bad_words": [5]}, "bad_words[0]"),
        (COMPLETE, {"prompt": "a", "logit_bias": {"3": "1"}}, "logit_bias"),
        (COMPLETE, {"prompt": "a", "stream": True, "stream_options": {"include_usage": 1}}, "stream_options"),
        (CHAT, {"messages": [HELLO]}, "messages[0]"),
        (CHAT, {"messages": [{"role": 3, "content": "a"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": {"text": "a"}}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [None]}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages"),
        (CHAT, {"messages": [{"role": "assistant", "content": "a", "tool_calls": 3}]}, "messages"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}]}, "messages"),
        (RESPOND, {"input": [{"role": "user", "content": [{"type": "input_text", "text": 3}]}]}, "input[0].content"),
        (RESPOND, {"input": "a", "metadata": {"a": 3}}, "metadata"),
        (RESPOND, {"input": "a", "text": {"verbosity": 3}}, "text.verbosity"),
    ],
)
def test_a_value_of_a_wrong_type_inside_a_field_is_refused_by_its_place(
    path: str, body: dict[str, Any], param: str
) -> None:
    answer = Client().post(path, body)
    assert answer.status == 400 and str(refusal(answer)["param"]).startswith(param), answer.body


DEEP = [400, 600, 900, 100_000]


@pytest.mark.parametrize("depth", DEEP)
@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (COMPLETE, '{"prompt": "a", "metadata": ', "}"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": ', "}"),
        (CHAT, '{"messages": [{"role": "user", "content": "a", "more": ', "}]}"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "documents": [', "]}"),
        (CHAT, '{"messages": [{"role": "user", "content": "a"}], "tool_choice": "none", "tools": [', "]}"),
        (RESPOND, '{"input": "a", "tool_choice": "none", "tools": [', "]}"),
        (RESPOND, '{"input": "a", "chat_template_kwargs": ', "}"),
        ("/v1/messages", '{"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "metadata": ', "}"),
    ],
)
def test_depth_is_taken_or_refused_and_never_a_fault(path: str, start: str, end: str, depth: int) -> None:
    answer = Client().post(path, (start + '{"a":' * depth + "1" + "}" * depth + end).encode())
    if answer.status != 200:
        assert answer.status == 400 and "nested too deeply" in refusal(answer, path)["message"], answer.body
    assert answer.status == 400 or depth < 1000


def test_deep_arguments_of_a_call_are_refused() -> None:
    call = {"function": {"name": "f", "arguments": "[" * 100_000}}
    answer = Client().post(CHAT, {"messages": [{"role": "assistant", "content": "a", "tool_calls": [call]}]})
    assert answer.status == 400 and refusal(answer)["param"] == "messages"


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

BEYOND = "9223372036854775808"  # 2**63
MOST, LEAST = "9223372036854775807", "-9223372036854775808"
NUMBERS: dict[str, tuple[list[str], list[str]]] = {
    "temperature": (["0", "1e-300", "2", "1e308"], ["-1", "-1e-300", "1e999", "-1e999"]),
    "top_p": (["1e-300", "1"], ["0", "-0.1", "1.0001", "1e999"]),
    "top_k": (["-1", "0", "1", MOST], ["-2", LEAST, BEYOND, "1e3"]),
    "min_p": (["0", "1"], ["-0.1", "1.1", "1e999"]),
    "presence_penalty": (["-2", "2"], ["-2.1", "2.1", "1e999"]),
    "frequency_penalty": (["-2", "2"], ["-2.1", "2.1", "1e999"]),
    "repetition_penalty": (["1e-300", "1e308"], ["0", "-1", "1e999"]),
    "n": (["1", "128"], ["0", "-1", "129", MOST, BEYOND]),
    "best_of": (["1", "128"], ["0", "-1", "129", MOST]),
    "seed": ([LEAST, "-1", "0", MOST], [BEYOND, "-9223372036854775809", "1e3"]),
    "max_tokens": (["1", MOST, "null"], ["0", "-1", BEYOND]),
    "min_tokens": (["0", "4"], ["-1", "5", MOST, BEYOND]),
    "logprobs": (["0", "20", "true", "false"], ["-1", "-2", "21", MOST, BEYOND]),
    "prompt_logprobs": (["0", "20"], ["-1", "-2", "21", MOST]),
    "truncate_prompt_tokens": (["-1", "1", MOST], ["0", "-2", LEAST]),
    "priority": ([LEAST, MOST], [BEYOND]),
    "logit_bias": (
        ["{}", '{"3": -100}', '{"3": 1e308}'],
        ['{"3": 1e999}', '{"-1": 1}', '{"4096": 1}', '{"x": 1}', '{"\u00b2": 1}', '{"--5": 1}', '{"1.5": 1}']
        + ['{"3": true}', json.dumps({"9" * 5000: 1}), json.dumps(dict.fromkeys(map(str, range(4097)), 1))],
    ),
    "stop_token_ids": (["[]", "[0]", f"[{MOST}]"], ["[-1]", f"[{BEYOND}]", str([1] * 4097)]),
    "allowed_token_ids": (["[5]"], ["[]", "[-1]", "[4096]", str([1] * 4097)]),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_out_of_its_range_is_refused_by_name_and_one_at_its_edge_is_taken(field: str) -> None:
    good, bad = NUMBERS[field]
    start = '{"prompt": "a", ' + ("" if field == "max_tokens" else '"max_tokens": 4, ')
    for text in good:
        answer = Client().post(COMPLETE, f'{start}"{field}": {text}}}'.encode())
        assert answer.status == 200, (text, answer.body)
    for text in bad:
        answer = Client().post(COMPLETE, f'{start}"{field}": {text}}}'.encode())
        assert answer.status == 400 and names(refusal(answer), field), (text[:60], answer.body)
    for text in ("NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x1", "1_0"):
        answer = Client().post(COMPLETE, f'{start}"{field}": {text}}}'.encode())
        assert answer.status == 400 and "not JSON" in refusal(answer)["message"], (text, answer.body)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (COMPLETE, {"prompt": "a", "use_beam_search": True, "length_penalty": 33}, "length_penalty"),
        (COMPLETE, {"prompt": "a", "use_beam_search": True, "length_penalty": -33}, "length_penalty"),
        (COMPLETE, {"prompt": "a", "use_beam_search": True, "temperature": -1}, "temperature"),
        (COMPLETE, {"prompt": "a", "use_beam_search": True, "n": 0}, "n"),
        (COMPLETE, {"prompt": "a", "use_beam_search": True, "max_tokens": 2**63}, "max_tokens"),
        (COMPLETE, {"prompt": "a", "n": 3, "temperature": 0}, "n"),
        (COMPLETE, {"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        (CHAT, {"messages": HELLO, "max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": HELLO, "n": 129}, "n"),
        (RESPOND, {"input": "a", "max_output_tokens": -1}, "max_output_tokens"),
        (RESPOND, {"input": "a", "temperature": 1e308, "top_p": 0}, "top_p"),
        (RESPOND, {"input": "a", "top_k": -2}, "top_k"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 4, "temperature": -1}, "temperature"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 4, "top_k": -2}, "top_k"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 2**63}, "max_tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**62]}, "tokens"),
    ],
)
def test_numbers_of_other_bodies_are_refused_by_the_name_they_have_there(
    path: str, body: dict[str, Any], param: str
) -> None:
    answer = Client().post(path, body)
    assert answer.status == 400 and names(refusal(answer, path), param), answer.body
