"""Between text and token ids.

    tokenizer.json ──▶ FastTokenizer   the `tokenizers` library alone; also what transformers' fast classes hold inside
    anything else  ──▶ SlowTokenizer   a transformers tokenizer written in Python

`load_tokenizer` picks.  transformers is imported only where a checkpoint's files do not say everything themselves (see
`tokenizer_files`), or where a user asks for a transformers tokenizer (`hf_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vllm.errors import ModelError, RequestError
from vllm.inputs.tokenizer_files import ByteRule, TokenizerFiles, byte_rule, read_backend, token_bytes

if TYPE_CHECKING:
    import tokenizers

_WORD = "a"  # a word that every vocabulary has: what a token's text is measured against
Side = Literal["left", "right"]


class Encoding(Protocol):
    """A text or a pair of texts as tokens.  The names are those of the `tokenizers` library, whose encodings are such."""

    @property
    def ids(self) -> list[int]: ...

    @property
    def type_ids(self) -> list[int]:
        """Which of the pair each token belongs to, as the model is told."""

    @property
    def sequence_ids(self) -> list[int | None]:
        """Which text each token is of; None: it was added around them."""


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
    truncation_side: Side
    """Where a text loses tokens if there are too many of them and the model is not to go on with it."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of `text`.  Raises RequestError for text that is not Unicode."""

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Return the token ids of each text."""

    def encode_pairs(
        self, texts: Sequence[str | tuple[str, str]], add_special_tokens: bool = True
    ) -> Sequence[Encoding]:
        """Return the tokens of each text, or pair of texts in the form that the tokenizer gives pairs."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; ids outside the vocabulary have none."""

    def token_text(self, token_id: int) -> str:
        """Return what a token adds to the text before it, a leading space included."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds, in bytes.  Only where there is a `byte_rule`."""


def load_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False, code_revision: str | None = None
) -> Tokenizer:
    """Return the tokenizer of a checkpoint folder.  Raises ModelError if there is none that can be read.

    `code_revision` is of the code that comes with it, where that is in a repository of its own.
    """
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
        return FastTokenizer(backend, files.special_tokens, files.truncation_side)
    hf = hf_tokenizer(folder, trust_remote_code=trust_remote_code, code_revision=code_revision)
    special_tokens = {name: str(text) for name, text in hf.special_tokens_map.items() if isinstance(text, str)}
    inner: Any = getattr(hf, "backend_tokenizer", None)
    if type(inner).__module__.split(".")[0] == "tokenizers":
        return FastTokenizer(inner, special_tokens, files.truncation_side)
    return SlowTokenizer(hf, special_tokens, files.truncation_side)


def hf_tokenizer(
    folder: str | Path, *, trust_remote_code: bool = False, code_revision: str | None = None, **options: Any
) -> Any:
    """Return the transformers tokenizer of a folder: for users, and for what only transformers can read.

    `options` are those of transformers.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=trust_remote_code, code_revision=code_revision, **options
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{folder}: no tokenizer could be loaded ({reason}); put tokenizer.json and tokenizer_config.json beside "
            "the weights, or give tokenizer= another folder"
        ) from error


class FastTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(
        self, backend: tokenizers.Tokenizer, special_tokens: dict[str, str], truncation_side: Side = "right"
    ) -> None:
        backend.no_truncation()  # files may carry the settings of a training run
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.backend = backend
        self.special_tokens = special_tokens
        self.truncation_side: Side = truncation_side
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

    def encode_pairs(
        self, texts: Sequence[str | tuple[str, str]], add_special_tokens: bool = True
    ) -> Sequence[Encoding]:
        encodings: Sequence[Encoding] = self.backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return encodings

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


@dataclass(frozen=True, slots=True)
class _SlowEncoding:
    ids: list[int]
    type_ids: list[int]
    sequence_ids: list[int | None]


class SlowTokenizer:
    """A transformers tokenizer without a `tokenizers` one inside."""

    byte_rule: ByteRule | None = None

    def __init__(self, hf: Any, special_tokens: dict[str, str], truncation_side: Side = "right") -> None:
        self.hf = hf
        self.special_tokens = special_tokens
        self.truncation_side: Side = truncation_side
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

    def encode_pairs(
        self, texts: Sequence[str | tuple[str, str]], add_special_tokens: bool = True
    ) -> Sequence[Encoding]:
        pairs = [(text, None) if isinstance(text, str) else text for text in texts]
        return [self._encode_pair(first, second, add_special_tokens) for first, second in pairs]

    def _encode_pair(self, first: str, second: str | None, add_special_tokens: bool) -> _SlowEncoding:
        options = {"return_token_type_ids": True, "return_special_tokens_mask": True, "verbose": False}
        found = self.hf(first, second, add_special_tokens=add_special_tokens, **options)
        added = found["special_tokens_mask"] if add_special_tokens else [0] * len(found["input_ids"])
        left, sources = len(self.encode(first, add_special_tokens=False)), []
        for is_added in added:
            sources.append(None if is_added else 0 if left > 0 else 1)
            left -= not is_added
        return _SlowEncoding(list(found["input_ids"]), list(found["token_type_ids"]), sources)

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
