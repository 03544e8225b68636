"""Every shape of prompt, and every mistake that shows without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vllm import TextPrompt, TokensPrompt
from vllm.errors import RequestError
from vllm.inputs.prompts import Prompt, parse_prompts

parse: Any = parse_prompts  # without its types: what follows is about wrong ones


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ("hello", [Prompt("hello")]),
        (["a", "b"], [Prompt("a"), Prompt("b")]),
        (("a", "b"), [Prompt("a"), Prompt("b")]),
        ([1, 2, 3], [Prompt(token_ids=[1, 2, 3])]),
        ([[1, 2], [3]], [Prompt(token_ids=[1, 2]), Prompt(token_ids=[3])]),
        ({"prompt": "a"}, [Prompt("a")]),
        ({"prompt_token_ids": [5]}, [Prompt(token_ids=[5])]),
        (TextPrompt(prompt="a", cache_salt="s", multi_modal_data=None), [Prompt("a", cache_salt="s")]),
        ([TokensPrompt(prompt_token_ids=[5], prompt="five"), "six", [7]],
         [Prompt("five", [5]), Prompt("six"), Prompt(token_ids=[7])]),
        ([np.int64(3), np.int32(4)], [Prompt(token_ids=[3, 4])]),
        ("", [Prompt("")]),
    ],
)  # fmt: skip
def test_one_or_many_prompts_become_a_list(given: Any, parsed: list[Prompt]) -> None:
    assert parse_prompts(given) == parsed


def test_the_older_keyword_gives_token_ids() -> None:
    assert parse_prompts(prompt_token_ids=[1, 2]) == [Prompt(token_ids=[1, 2])]
    assert parse_prompts(prompt_token_ids=[[1], [2]]) == [Prompt(token_ids=[1]), Prompt(token_ids=[2])]
    assert parse_prompts(["one", "two"], prompt_token_ids=[[1], [2]]) == [Prompt("one", [1]), Prompt("two", [2])]
    assert parse_prompts("one", prompt_token_ids=[1]) == [Prompt("one", [1])]


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (parse_prompts, TypeError, "no prompt"),
        (lambda: parse(5), TypeError, "int 5"),
        (lambda: parse(b"abc"), TypeError, "bytes"),
        (lambda: parse([]), RequestError, "empty list"),
        (lambda: parse(["a", None]), TypeError, "prompt 1 .* NoneType"),
        (lambda: parse(["a", 5]), TypeError, "prompt 1 .* int 5"),
        (lambda: parse(["a", b"b"]), TypeError, "prompt 1 .* bytes"),
        (lambda: parse([1, "a"]), TypeError, "prompt 0 .* index 1 .* 'a'"),
        (lambda: parse([1, 2.0]), TypeError, "index 1 .* float"),
        (lambda: parse([[1], [True]]), TypeError, "prompt 1 .* index 0 .* bool"),
        (lambda: parse([["a", "b"]]), TypeError, "prompt 0 .* index 0 .* 'a'"),
        (lambda: parse([[[1]]]), TypeError, "prompt 0 .* index 0 .* list"),
        (lambda: parse([[1], []]), RequestError, "prompt 1 is empty"),
        (lambda: parse({"prompt_token_ids": []}), RequestError, "prompt 0 is empty"),
        (lambda: parse({"prompt_token_ids": "12"}), TypeError, "prompt_token_ids.* str '12'"),
        (lambda: parse({"prompt": 3}), TypeError, "'prompt' must be a text"),
        (lambda: parse({}), RequestError, "neither"),
        (lambda: parse({"promt": "a"}), RequestError, "promt.*Did you mean 'prompt'"),
        (lambda: parse({"prompt": "a", "cache_salt": ""}), RequestError, "cache_salt"),
        (lambda: parse(["a", {"prompt": "b", "multi_modal_data": {"image": 1}}]), RequestError,
         r"prompt 1: image 0 has the shape \(\)"),
        (lambda: parse({"prompt": "b", "multi_modal_data": {"imge": 1}}), RequestError, "'imge'.*Did you mean 'image'"),
        (lambda: parse({"prompt": "b", "multi_modal_data": {"audio": [[0.0]]}}), RequestError, "samples per second"),
        (lambda: parse({"encoder_prompt": "a", "decodr_prompt": "b"}), RequestError, "Did you mean 'decoder_prompt'"),
        (lambda: parse({"encoder_prompt": {"encoder_prompt": "a"}}), RequestError, "pairs of prompts within a pair"),
        (lambda: parse(["a"], prompt_token_ids=[[1], [2]]), RequestError, "1 prompts but 2"),
        (lambda: parse(prompt_token_ids=["a"]), TypeError, r"prompt_token_ids\[0\]"),
    ],
)  # fmt: skip
def test_a_mistake_names_the_position_and_the_value(call: Callable[[], Any], kind: type, words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


def test_a_prompt_does_not_share_the_callers_list() -> None:
    ids = [1, 2]
    (prompt,) = parse_prompts(ids)
    ids.append(3)
    assert prompt.token_ids == [1, 2]
