"""The ids of tokens, looked up without loading a tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vllm.errors import ModelError


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
        try:
            found = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        ids |= {entry["content"]: int(index) for index, entry in found.get("added_tokens_decoder", {}).items()}
        ids |= {entry["content"]: entry["id"] for entry in found.get("added_tokens", [])}
        ids |= {word: index for word, index in found.items() if isinstance(index, int)} if "added" in name else {}
    return ids
