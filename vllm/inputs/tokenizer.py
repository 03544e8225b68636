"""Between text and token ids.

    tokenizer.json ──▶ FastTokenizer   the `tokenizers` library alone; also what transformers' fast classes hold inside
    anything else  ──▶ SlowTokenizer   a transformers tokenizer written in Python

`load_tokenizer` picks.  transformers is imported only where a checkpoint's files do not say everything themselves (see
`tokenizer_files`), or where a user asks for a transformers tokenizer (`hf_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vllm.errors import ModelError, RequestError
from vllm.inputs.tokenizer_files import ByteRule, TokenizerFiles, byte_rule, read_backend, token_bytes

if TYPE_CHECKING:
    import tokenizers

_WORD = "a"  # a word that every vocabulary has: what a token's text is measured against


class Tokenizer(Protocol):
    """What the rest of the house needs to know of a checkpoint's tokenizer."""

    bos_token_id: int | None
    eos_token_id: int | None
    special_ids: frozenset[int]
    special_tokens: dict[str, str]
    """Name → text, as chat templates see them: bos_token, eos_token, …"""
    vocab_size: int
    """One more than the highest token id."""
    byte_rule: ByteRule | None
    """How tokens become bytes, where a token's text does not depend on its neighbours."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`.  Raises RequestError for text that is not Unicode."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; ids outside the vocabulary have none."""

    def token_text(self, token_id: int) -> str:
        """Return what a token adds to the text before it, a leading space included."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds, in bytes.  Only where there is a `byte_rule`."""


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder.  Raises ModelError if there is none that can be read."""
    try:
        files = TokenizerFiles.read(Path(folder))
        backend = read_backend(files)
    except ModelError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # an entry of another type than it should have
        raise ModelError(
            f"{folder}: tokenizer_config.json or special_tokens_map.json holds something unexpected "
            f"({type(error).__name__}: {error}); fetch the files again"
        ) from error
    if backend is not None:
        return FastTokenizer(backend, files.special_tokens)
    hf = hf_tokenizer(folder, trust_remote_code=trust_remote_code)
    special_tokens = {name: str(text) for name, text in hf.special_tokens_map.items() if isinstance(text, str)}
    inner: Any = getattr(hf, "backend_tokenizer", None)
    if type(inner).__module__.split(".")[0] == "tokenizers":
        return FastTokenizer(inner, special_tokens)
    return SlowTokenizer(hf, special_tokens)


def hf_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers tokenizer of a folder: for users, and for what only transformers can read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{folder}: no tokenizer could be loaded ({reason}); put tokenizer.json and tokenizer_config.json beside "
            "the weights, or give tokenizer= another folder"
        ) from error


class FastTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> None:
        backend.no_truncation()  # files may carry the settings of a training run
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.backend = backend
        self.special_tokens = special_tokens
        self.bos_token_id = _id_of(backend, special_tokens.get("bos_token"))
        self.eos_token_id = _id_of(backend, special_tokens.get("eos_token"))
        self.special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self.vocab_size = max(backend.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
        self.byte_rule = byte_rule(backend)
        self._bytes: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self.encode_batch([text], add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except TypeError:
            for text in texts:
                check_text(text)
            raise
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        text = self._texts.get(token_id)
        if text is None:
            if self.byte_rule is not None:
                text = self.token_bytes(token_id).decode("utf-8", "replace")
            else:
                text = _text_after(self, token_id)
            self._texts[token_id] = text
        return text

    def token_bytes(self, token_id: int) -> bytes:
        content = self._bytes.get(token_id)
        if content is None:
            assert self.byte_rule is not None, "only tokenizers with a byte rule have tokens that are bytes"
            content = token_bytes(self.backend.id_to_token(token_id), self.byte_rule)
            self._bytes[token_id] = content
        return content


class SlowTokenizer:
    """A transformers tokenizer without a `tokenizers` one inside."""

    byte_rule: ByteRule | None = None

    def __init__(self, hf: Any, special_tokens: dict[str, str]) -> None:
        self.hf = hf
        self.special_tokens = special_tokens
        self.bos_token_id: int | None = hf.bos_token_id
        self.eos_token_id: int | None = hf.eos_token_id
        self.special_ids = frozenset(hf.all_special_ids)
        self.vocab_size = len(hf)
        self._texts: dict[int, str] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        check_text(text)
        return list(self.hf.encode(text, add_special_tokens=add_special_tokens))

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        return [self.encode(text, add_special_tokens) for text in texts]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        known = [token for token in token_ids if 0 <= token < self.vocab_size]
        return self.hf.decode(known, skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        if token_id not in self._texts:
            self._texts[token_id] = _text_after(self, token_id)
        return self._texts[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        raise NotImplementedError("a slow tokenizer has no byte rule")


def _text_after(tokenizer: Tokenizer, token_id: int) -> str:
    """Return what a token adds after an ordinary word: alone, many decoders would strip its space."""
    word = tokenizer.encode(_WORD, add_special_tokens=False)
    before = tokenizer.decode(word, skip_special_tokens=False)
    both = tokenizer.decode([*word, token_id], skip_special_tokens=False)
    return both[len(before) :] if both.startswith(before) else tokenizer.decode([token_id], skip_special_tokens=False)


def _id_of(backend: tokenizers.Tokenizer, token: str | None) -> int | None:
    return None if token is None else backend.token_to_id(token)


def check_text(text: str, where: str = "the text") -> None:
    """Raise RequestError for text that is not Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{where} has an unpaired surrogate {text[error.start]!r} at character {error.start}; "
            "send valid Unicode, for example text.encode('utf-8', 'replace').decode()",
            "prompt",
        ) from None
