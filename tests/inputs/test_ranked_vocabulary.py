"""Vocabularies of ranks: what the two that are known make of texts, and what is said of damaged ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from vllm.errors import ModelError
from vllm.inputs.tokenizer import load_tokenizer

RANKS = [*(bytes([byte]) for byte in range(256)), b"12", b"23", b"123", b"th", b"he", b"the"]
ADDED = {"262": "<|endoftext|>", "263": "[gMASK]", "264": "<sop>", "265": "<|user|>"}


def chatglm(place: Path, lines: Sequence[str]) -> Path:
    said = {
        "tokenizer_class": "ChatGLM4Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLM4Tokenizer", None]},
        "added_tokens_decoder": {index: {"content": word, "special": True} for index, word in ADDED.items()},
    }
    (place / "tokenizer_config.json").write_text(json.dumps(said))
    (place / "config.json").write_text(json.dumps({"model_type": "chatglm"}))
    (place / "tokenizer.model").write_text("".join(f"{line}\n" for line in lines))
    return place


LINES = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(RANKS)]


def test_glm_4(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(chatglm(tmp_path, LINES))
    begins = [263, 264]
    assert tokenizer.encode("1234") == [*begins, 258, ord("4")]
    assert tokenizer.encode("<|user|>the!", add_special_tokens=False) == [265, 261, ord("!")]
    assert tokenizer.encode("", add_special_tokens=True) == begins
    assert tokenizer.decode([265, 261, 32, 258]) == "the 123"


def test_qwen_reads_numbers_one_by_one(tmp_path: Path) -> None:
    chatglm(tmp_path, []).joinpath("qwen.tiktoken").write_text("".join(f"{line}\n" for line in LINES))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "QWenTokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the 12<|im_start|>") == [261, 32, ord("1"), ord("2"), 263]
    assert tokenizer.encode("<imgpad>")[0] == ord("<")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": {"width": 8}}))
    assert load_tokenizer(tmp_path).encode("<imgpad>") == [262 + 208 + 8]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([*LINES, "MTI"], "a line is no token with its rank"),
        ([*LINES, "!!!! 262"], "a line is no token with its rank"),
        ([*LINES, "MTI0 300"], "its ranks have gaps"),
        ([*LINES[:-1]], None),
        ([*LINES, "MTI0 1"], "its ranks have gaps"),
    ],
)
def test_damaged(tmp_path: Path, lines: Sequence[str], said: str | None) -> None:
    place = chatglm(tmp_path, lines)
    if said is None:
        assert load_tokenizer(place).encode("a")
        return
    with pytest.raises(ModelError, match=said):
        load_tokenizer(place)
