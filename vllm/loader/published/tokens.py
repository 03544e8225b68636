"""The ids of tokens, looked up without loading a tokenizer, and what models' own code does to their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.errors import ModelError

WHOLE: Mapping[str, tuple[str, ...]] = {
    "deepseek_vl_v2": (
        "<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>",
    ),
    "minicpmo": (),
    "minicpmv": (),
}  # fmt: skip
"""Model types whose tokenizer.json is the whole tokenizer, though config files name code → words that this code adds behind it"""


def token_id(folder: Path, word: str) -> int:
    """Return the id of a token that was added to a vocabulary.  Raises ModelError if there is none."""
    return ids_of(folder)[first_of(folder, (word,))]


def first_of(folder: Path, words: Sequence[str]) -> str:
    """Return the first of some words that is a token.  Raises ModelError if none is."""
    ids = ids_of(folder)
    found = next((word for word in words if word in ids), None)
    if found is None:
        raise ModelError(f"{folder}: its tokenizer has no {' nor '.join(words)}; put tokenizer.json beside the weights")
    return found


def ids_of(folder: Path) -> dict[str, int]:
    """Return the tokens that were added to a folder's vocabulary, and their ids."""
    ids: dict[str, int] = {}
    for name in ("tokenizer_config.json", "tokenizer.json", "added_tokens.json"):
        found = _read(folder / name)
        ids |= {entry["content"]: int(index) for index, entry in found.get("added_tokens_decoder", {}).items()}
        ids |= {entry["content"]: entry["id"] for entry in found.get("added_tokens", [])}
        ids |= {word: index for word, index in found.items() if isinstance(index, int)} if "added" in name else {}
    if words := WHOLE.get(str(_read(folder / "config.json").get("model_type"))):
        known = _read(folder / "tokenizer.json").get("model", {}).get("vocab", {})
        for word in (word for word in words if word not in ids):
            ids[word] = max([len(known) - 1, *ids.values()]) + 1
    return ids


def _read(file: Path) -> dict[str, Any]:
    """Return what a file says; nothing if it can't be read, which others complain about."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
