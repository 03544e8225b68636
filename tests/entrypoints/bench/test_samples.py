"""What is asked: lengths are what was wanted, files are read or refused by name."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest

import vllm.entrypoints.bench.measures
from vllm.entrypoints.bench.samples import Wanted, make_samples
from vllm.errors import ConfigError
from vllm.inputs.tokenizer import Tokenizer, load_tokenizer


def wanted(**changes: Any) -> Wanted:
    settings: dict[str, Any] = {
        "name": "random",
        "path": None,
        "count": 20,
        "input_len": 40,
        "output_len": 8,
        "range_ratio": 0.0,
        "prefix_len": 0,
        "seed": 1,
    }
    return Wanted(**{**settings, **changes})


@pytest.fixture(params=["byte level", "sentencepiece", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(tokenizer_folders[request.param])


def test_random_prompts_have_the_length_that_is_wanted(tokenizer: Tokenizer) -> None:
    samples = make_samples(wanted(), tokenizer, 1)
    counts = [len(tokenizer.encode(sample.prompt)) for sample in samples]
    assert counts == [sample.num_prompt for sample in samples]
    assert counts.count(40) >= 18  # a vocabulary may have no text of just this length
    assert {sample.max_tokens for sample in samples} == {8}
    assert len({sample.prompt for sample in samples}) == 20


def test_the_seed_decides(tokenizer: Tokenizer) -> None:
    assert make_samples(wanted(), tokenizer, 1) == make_samples(wanted(), tokenizer, 1)
    assert make_samples(wanted(), tokenizer, 1) != make_samples(wanted(seed=2), tokenizer, 1)


def test_lengths_may_differ_and_beginnings_be_shared(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["byte level"])
    samples = make_samples(wanted(range_ratio=0.5, prefix_len=10), tokenizer, 1)
    lengths = [sample.num_prompt for sample in samples]
    assert min(lengths) >= 29 and max(lengths) <= 71 and len(set(lengths)) > 5
    assert {tuple(tokenizer.encode(sample.prompt)[:10]) for sample in samples}.__len__() == 1
    assert len({sample.max_tokens for sample in samples}) > 3


def test_conversations_are_prompts_with_lengths(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_folders["byte level"])
    path = tmp_path / "chats.json"
    long, short = "The tide came in twice a day", "Hi"
    turns = [(long, long), (short, long), (long, short), (long, "")]
    entries = [{"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]} for a, b in turns]
    path.write_text(json.dumps([*entries, {"conversations": []}, {}]))
    count = len(tokenizer.encode(long))
    samples = make_samples(wanted(name="sharegpt", path=str(path), output_len=None, count=3), tokenizer, 1)
    assert [(sample.prompt, sample.num_prompt, sample.max_tokens) for sample in samples] == [(long, count, count)] * 3
    samples = make_samples(wanted(name="sharegpt", path=str(path), output_len=5, count=9), tokenizer, 1)
    assert {(sample.prompt, sample.max_tokens) for sample in samples} == {(long, 5)}


def test_lines_are_requests(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "Hello"}]
    lines = [{"prompt": "One", "max_tokens": 3}, {"messages": messages}, {"prompt": "Two", "output_tokens": 4}]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    samples = make_samples(wanted(name="jsonl", path=str(path), output_len=None, count=4), None, 9)
    assert [(sample.prompt, sample.max_tokens) for sample in samples] == [
        ("One", 3),
        ("Hello", 9),
        ("Two", 4),
        ("One", 3),
    ]
    assert samples[1].messages == messages


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("jsonl", "{", "line 1: it is not JSON"),
        ("jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2: needs a text 'prompt' or a list 'messages'"),
        ("jsonl", '{"prompt": "a", "max_tokens": 0}', "max_tokens must be an integer of at least 1, got 0"),
        ("jsonl", "", "has no request that can be used"),
        ("sharegpt", "{}", "must hold a JSON list"),
        ("sharegpt", "[1]", "has no request that can be used"),
    ],
)
def test_a_file_that_is_wrong_is_refused(
    tmp_path: Path, tokenizer_folders: dict[str, Path], name: str, content: str, message: str
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_samples(wanted(name=name, path=str(path)), load_tokenizer(tokenizer_folders["byte level"]), 1)


def test_what_counts_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name the model's folder with --tokenizer"):
        make_samples(wanted(), None, 1)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        make_samples(wanted(name="jsonl", path=str(tmp_path / "none")), None, 1)


def test_the_examples_of_measures_are_true() -> None:
    failed, attempted = doctest.testmod(vllm.entrypoints.bench.measures)
    assert attempted and not failed
