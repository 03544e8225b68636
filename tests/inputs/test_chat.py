"""Chat prompts against transformers' `apply_chat_template`, and the mistakes a conversation can hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm.entrypoints.chat_utils import load_chat_template, resolve_hf_chat_template
from vllm.errors import ConfigError, ModelError, RequestError
from vllm.inputs.chat import ChatOptions, ChatRenderer, parse_conversations
from vllm.inputs.chat_template import find_templates
from vllm.inputs.jinja import content_format
from vllm.inputs.prepare import Limits, Preparer
from vllm.inputs.tokenizer import load_tokenizer
from vllm.sampling_params import SamplingParams

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- '\\n' }}{{ tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}
    {%- if message.content is defined %}{{ message['content'] }}{% endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + call.function.name + ' ' }}{{ call.function.arguments | tojson }}{{ '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}
{% endif %}
"""
HEADERS = """{{- bos_token }}
{%- set ns = namespace(first=true) %}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {{- '<|header|>' + message['role'] + '<|/header|>\\n\\n' + message['content'] | trim + eos_token }}
    {%- set ns.first = false %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header|>assistant<|/header|>\\n\\n' }}{% endif %}"""
ALTERNATING = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}{% set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}{{ '[INST] ' + (system + '\\n' if system and loop.first else '') }}
        {{- message['content'] + ' [/INST]' }}
    {%- else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}
{%- endfor %}"""
GENERATION = """{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content }}
{% endgeneration %}
{% else %}
{{ message.role }}: {{ message.content }}
{% endif %}
{% endfor %}"""
PARTS = """{% for message in messages %}{{ message.role }}>
{%- for part in message.content %}{% if part.type == 'text' %}{{ part.text }}|{% endif %}{% endfor %}
{%- endfor %}"""
BOTH = """{% macro show(content) %}{% if content is string %}{{ content }}{% else %}
{%- for part in content %}{{ part['text'] }}+{% endfor %}{% endif %}{% endmacro %}
{%- for message in messages %}{{ message.role }}>{{ show(message.content) }}
{% endfor %}"""
DOCUMENTS = """{% for document in documents %}[{{ document.title }}: {{ document.text }}]{% endfor %}
{{- strftime_now('%Y') }} {{ dict(a=1) }} {{ messages[0].content[:3] }}"""
TEMPLATES = {
    "chatml": CHATML, "headers": HEADERS, "alternating": ALTERNATING, "generation": GENERATION, "both": BOTH,
}  # fmt: skip

SHORT: list[dict[str, Any]] = [{"role": "user", "content": " Hëllo <b>&'\" 😀 \n"}]
LONG: list[dict[str, Any]] = [
    {"role": "system", "content": "Be terse. "},
    {"role": "user", "content": "What's 2 + 2?"},
    {"role": "assistant", "content": "4 "},
    {"role": "user", "content": "{{ 1 + 1 }} {% raw %}"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "reasoning": "must look", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}]},
    {"role": "tool", "content": "rain", "tool_call_id": "1"},
]  # fmt: skip
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def theirs(tokenizer_folders: dict[str, Path]) -> Any:
    return AutoTokenizer.from_pretrained(tokenizer_folders["sentencepiece"])


@pytest.fixture(scope="module")
def special_tokens(tokenizer_folders: dict[str, Path]) -> dict[str, str]:
    return load_tokenizer(tokenizer_folders["sentencepiece"]).special_tokens


@pytest.fixture
def renderer(special_tokens: dict[str, str]) -> ChatRenderer:
    return ChatRenderer("acme/model", TEMPLATES | {"parts": PARTS, "documents": DOCUMENTS}, special_tokens)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("messages", [SHORT, LONG, LONG[:3], LONG[1:]])
@pytest.mark.parametrize("add", [True, False])
def test_a_prompt_equals_that_of_transformers(
    name: str, messages: list[Any], add: bool, renderer: ChatRenderer, theirs: Any
) -> None:
    expected = theirs.apply_chat_template(
        copy.deepcopy(messages), chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=add
    )
    assert renderer.render(messages, ChatOptions(name, add_generation_prompt=add)) == expected


@pytest.mark.parametrize("name", ["chatml", "headers", "both"])
@pytest.mark.parametrize("messages", [LONG[:3], [*LONG[:2], {"role": "assistant", "content": "two words  "}]])
def test_continuing_the_last_message_equals_transformers(
    name: str, messages: list[Any], renderer: ChatRenderer, theirs: Any
) -> None:
    expected = theirs.apply_chat_template(
        copy.deepcopy(messages), chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    options = ChatOptions(name, add_generation_prompt=False, continue_final_message=True)
    assert renderer.render(messages, options) == expected
    assert expected.rstrip().endswith(messages[-1]["content"].strip())


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("thinking", [{}, {"enable_thinking": False}])
def test_tools_reasoning_and_template_variables_equal_transformers(
    tools: Any, thinking: dict[str, bool], renderer: ChatRenderer, theirs: Any
) -> None:
    expected = theirs.apply_chat_template(
        CALLS, chat_template=CHATML, tokenize=False, tools=tools, add_generation_prompt=True, **thinking
    )
    ours = renderer.render(CALLS, ChatOptions("chatml", tools=tools, chat_template_kwargs=thinking))
    assert ours == expected
    assert "must look" in ours and "Köln" in ours and ("# Tools" in ours) == (tools is not None)


def test_tool_arguments_as_json_text_are_parsed(renderer: ChatRenderer) -> None:
    written = copy.deepcopy(CALLS)
    written[1]["tool_calls"][0]["function"]["arguments"] = '{"city": "Köln"}'
    assert renderer.render(written, ChatOptions("chatml")) == renderer.render(CALLS, ChatOptions("chatml"))
    written[1]["tool_calls"][0]["function"]["arguments"] = "{city"
    with pytest.raises(RequestError, match="message 1: the arguments of tool call 'weather' are not JSON"):
        renderer.render(written, ChatOptions("chatml"))


def test_documents_and_functions_reach_the_template(renderer: ChatRenderer, theirs: Any) -> None:
    documents = [{"title": "A", "text": "b"}]
    expected = theirs.apply_chat_template(SHORT, chat_template=DOCUMENTS, tokenize=False, documents=documents)
    ours = renderer.render(SHORT, ChatOptions("documents", add_generation_prompt=False, documents=documents))
    assert ours == expected == f"[A: b]{datetime.now():%Y} {{'a': 1}}  Hë"


@pytest.mark.parametrize(("template", "form"), [
    (CHATML, "string"), (HEADERS, "string"), (PARTS, "openai"), (BOTH, "any"),
    ("{% for m in messages %}{% set c = m['content'] %}{% for p in c | selectattr('text') %}{{p}}{% endfor %}{% endfor %}",
     "openai"),
])  # fmt: skip
def test_the_form_of_contents_is_read_from_the_template(template: str, form: str) -> None:
    assert content_format(template) == form


def test_contents_take_the_form_that_the_template_wants(renderer: ChatRenderer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]
    text = [{"role": "user", "content": "a"}]
    plain = ChatOptions(add_generation_prompt=False, chat_template="{{ messages[0].content }}")
    assert renderer.render(parts, plain) == "a\nb"
    assert renderer.render(text, ChatOptions("parts")) == "user>a|"
    assert renderer.render(parts, ChatOptions("parts")) == "user>a|b|"
    assert renderer.render(parts, ChatOptions("both")) == "user>a+b+\n"
    assert renderer.render(parts, ChatOptions("both", chat_template_content_format="string")) == "user>a\nb\n"
    assert renderer.render(text, ChatOptions("both", chat_template_content_format="openai")) == "user>a+\n"


@pytest.mark.parametrize(
    ("messages", "kind", "words"),
    [
        ("hi", TypeError, "list of dicts"),
        ({"role": "user", "content": "x"}, TypeError, "list of dicts"),
        ([], RequestError, "at least one message"),
        ([SHORT, []], RequestError, "conversation 1 is empty"),
        ([SHORT, "x"], TypeError, "conversation 1"),
        (["x"], TypeError, "message 0 must be a dict"),
        ([*SHORT, 3], TypeError, "message 1 must be a dict"),
        ([{"content": "x"}], RequestError, "message 0 has no role"),
        ([{"role": "user"}], RequestError, r"message 0 \(user\) has no content"),
        ([{"role": "user", "content": 3}], RequestError, "got int 3"),
    ],
)
def test_a_damaged_conversation_is_named(messages: Any, kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        parse_conversations(messages)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "message 0, part 0: type 'image_url' is not supported"),
        ({"type": "text"}, "has no 'text'"),
        ({"image": "x"}, "type None"),
        (3, "must be a text or a dict"),
    ],
)
def test_a_part_that_is_not_text_is_refused_by_its_type(part: Any, words: str, renderer: ChatRenderer) -> None:
    with pytest.raises(RequestError, match=words):
        renderer.render([{"role": "user", "content": [part]}], ChatOptions("chatml"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda: ChatOptions(continue_final_message=True), "exclude each other"),
        (lambda: ChatOptions(chat_template_content_format="open_ai"), "Did you mean 'openai'"),
        (lambda: ChatOptions(tools={"a": 1}), "tools must be a list of dicts"),  # type: ignore[arg-type]
    ],
)
def test_impossible_options_are_refused(options: Callable[[], ChatOptions], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        options()


def test_what_a_template_refuses_is_a_request_error(renderer: ChatRenderer) -> None:
    with pytest.raises(RequestError, match="refuses these messages: roles must alternate"):
        renderer.render([*SHORT, *SHORT], ChatOptions("alternating"))
    with pytest.raises(RequestError, match="chat template"):
        renderer.render(SHORT, ChatOptions("{{ messages[0].nothing.at_all }}"))
    with pytest.raises(RequestError, match="can't set 'messages'"):
        renderer.render(SHORT, ChatOptions("chatml", chat_template_kwargs={"messages": []}))
    with pytest.raises(RequestError, match="leaves out the last message"):
        renderer.render(SHORT, ChatOptions("{{ 'x' }}", add_generation_prompt=False, continue_final_message=True))


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns.x }}",
        "{{ namespace(_x=1) }}",
        "{{ dict.__subclasses__() }}",
    ],
)
def test_a_template_can_not_leave_its_sandbox(attack: str, renderer: ChatRenderer) -> None:
    with pytest.raises(RequestError, match="chat template"):
        text = renderer.render(SHORT, ChatOptions(attack + "{{ raise_exception('no harm done') if false }}"))
        assert text == "", text  # an attribute that is forbidden may also be undefined, hence nothing
        raise RequestError("chat template gave nothing")


def test_objects_with_methods_do_not_reach_a_template(renderer: ChatRenderer) -> None:
    with pytest.raises(RequestError, match="chat_template_kwargs holds a PosixPath"):
        renderer.render(SHORT, ChatOptions("chatml", chat_template_kwargs={"x": Path("/")}))


def test_the_callers_messages_stay_as_they_are(renderer: ChatRenderer) -> None:
    messages = copy.deepcopy([*CALLS, {"role": "assistant", "content": [{"type": "text", "text": "so"}]}])
    before = copy.deepcopy(messages)
    options = ChatOptions("both", add_generation_prompt=False, continue_final_message=True)
    renderer.render([messages[0], messages[3]], options)
    renderer.render(messages[:3], ChatOptions("chatml"))
    assert messages == before


def test_a_syntax_error_names_its_line(renderer: ChatRenderer) -> None:
    with pytest.raises(ModelError, match="line 2"):
        renderer.render(SHORT, ChatOptions("{{ 1 }}\n{% if %}"))


def test_templates_are_found_where_checkpoints_keep_them(tmp_path: Path) -> None:
    assert find_templates(tmp_path) == {}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert find_templates(tmp_path) == {"default": "from json"}
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert find_templates(tmp_path) == {"default": "d", "tool_use": "t"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config"}))
    assert find_templates(tmp_path) == {"default": "config"}
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert find_templates(tmp_path) == {"default": "jinja"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("r")
    assert find_templates(tmp_path) == {"default": "jinja", "rag": "r"}


def test_what_transformers_saves_is_found(theirs: Any, tmp_path: Path) -> None:
    saved = copy.deepcopy(theirs)
    saved.chat_template = {"default": CHATML, "tool_use": HEADERS}
    saved.save_pretrained(tmp_path)
    assert find_templates(tmp_path) == {"default": CHATML, "tool_use": HEADERS}


def test_the_template_for_tools_is_taken_when_there_are_tools() -> None:
    renderer = ChatRenderer("m", {"default": "plain", "tool_use": "with tools", "rag": "rag"}, {})
    assert renderer.render(SHORT, ChatOptions()) == "plain"
    assert renderer.render(SHORT, ChatOptions(tools=TOOLS)) == "with tools"
    assert renderer.render(SHORT, ChatOptions("rag", tools=TOOLS)) == "rag"
    assert ChatRenderer("m", {"default": "plain"}, {}, default="{{ 'mine' }}").render(SHORT, ChatOptions()) == "mine"


def test_a_model_without_template_is_named_with_the_ways_out() -> None:
    with pytest.raises(ModelError, match=r"acme/base has no chat template.*chat_template=.*generate\(\)"):
        ChatRenderer("acme/base", {}, {}).render(SHORT, ChatOptions())
    with pytest.raises(ModelError, match="no default; .*: a, b"):
        ChatRenderer("m", {"b": "1", "a": "2"}, {}).render(SHORT, ChatOptions())


def test_special_tokens_of_a_prompt_are_not_added_twice(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["sentencepiece"])
    renderer = ChatRenderer("m", {"default": HEADERS}, tokenizer.special_tokens)
    prompts = renderer.prompts([SHORT, LONG], ChatOptions())
    requests = Preparer(tokenizer, Limits(1000, 2048)).prepare(prompts, SamplingParams())
    assert [request.token_ids.count(tokenizer.bos_token_id or 0) for request in requests] == [1, 1]
    assert requests[1].prompt == renderer.render(LONG, ChatOptions())


def test_a_template_is_loaded_from_a_path_or_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHATML)
    assert load_chat_template(path) == load_chat_template(str(path)) == CHATML
    assert load_chat_template(chat_template=CHATML) == CHATML
    assert load_chat_template("plain words", is_literal=True) == "plain words"
    assert load_chat_template(None) is None


def test_a_wrong_template_path_is_named_with_a_similar_one(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(CHATML)
    with pytest.raises(ConfigError, match="<path_to_template>"):
        load_chat_template(chat_template="<path_to_template>")
    with pytest.raises(ConfigError, match=r"chta\.jinja.*Similar: .*/chat\.jinja"):
        load_chat_template(tmp_path / "chta.jinja")
    with pytest.raises(ConfigError, match="directory"):
        load_chat_template(str(tmp_path))
    with pytest.raises(TypeError, match="is a path"):
        load_chat_template(tmp_path / "chat.jinja", is_literal=True)
    with pytest.raises(TypeError, match="got 3"):
        load_chat_template(3)  # type: ignore[arg-type]


def test_a_tokenizers_own_template_is_resolved(theirs: Any) -> None:
    assert resolve_hf_chat_template(tokenizer=theirs, chat_template=None, tools=None, model_config=object()) is None
    assert resolve_hf_chat_template(theirs, CHATML) == CHATML
    own = copy.deepcopy(theirs)
    own.chat_template = HEADERS
    assert resolve_hf_chat_template(tokenizer=own, chat_template=None, tools=None) == HEADERS
