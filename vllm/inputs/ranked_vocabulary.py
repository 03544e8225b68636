"""Vocabularies that are files of ranks: a token's bytes in base64 and its rank, line by line, as tiktoken keeps them.

    IQ== 0
    Ig== 1          a text's pieces are merged, pair by pair, to whichever token has the lowest rank
    …

How texts are cut into pieces, and which special tokens follow, is said by code beside such a file; it is known of two.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205)))
_QWEN_VL = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>")


def ranked_backend(
    folder: Path, tokenizer_config: Mapping[str, Any], config: Mapping[str, Any]
) -> tokenizers.Tokenizer | None:
    """Return the tokenizer of a folder whose vocabulary is such a file; None if it has another.  Raises ModelError if it is damaged.

    `tokenizer_config` and `config` are what tokenizer_config.json and config.json say.
    """
    name = tokenizer_config.get("tokenizer_class")
    if name == "QWenTokenizer" and (folder / "qwen.tiktoken").is_file():
        words = _QWEN + (_QWEN_VL if config.get("visual") else ())
        return _backend(_ranks(folder / "qwen.tiktoken"), _PIECES % "", words, composed=True)
    if name == "ChatGLM4Tokenizer" and (folder / "tokenizer.model").is_file():
        added = sorted(tokenizer_config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
        words = tuple(entry["content"] for _, entry in added)
        backend = _backend(_ranks(folder / "tokenizer.model"), _PIECES % "{1,3}", words, composed=False)
        return _beginning(backend, ("[gMASK]", "<sop>"))
    return None


def _beginning(backend: tokenizers.Tokenizer, words: Sequence[str]) -> tokenizers.Tokenizer:
    """Have texts begin with words, where special tokens are added."""
    from tokenizers import processors

    ids = [(word, backend.token_to_id(word)) for word in words]
    if all(index is not None for _, index in ids):
        backend.post_processor = processors.TemplateProcessing(single=[*words, "$A"], special_tokens=ids)
    return backend


def _ranks(file: Path) -> dict[bytes, int]:
    """Return the bytes of tokens and their ranks, which are numbers without gaps."""
    try:
        pairs = (line.split() for line in file.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise ModelError(f"{file}: a line is no token with its rank ({error}); fetch it again") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{file}: its ranks have gaps; fetch it again")
    return ranks


def _backend(ranks: Mapping[bytes, int], pieces: str, words: Sequence[str], composed: bool) -> tokenizers.Tokenizer:
    """`words`: special tokens, which follow the last rank.  `composed`: letters and their accents are made one."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    spelled = {token: _spelled(token) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in _merges(ranks)]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    if composed:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in words])
    return backend


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs that become a token, in the order of its rank."""
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for: printable Latin-1 for itself, those from U+0100 on for the other 68."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
"""Character of byte-level vocabularies → its byte"""
_CHARACTERS = {byte: character for character, byte in BYTE_OF.items()}


def _spelled(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
