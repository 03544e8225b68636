"""Token ids in, text out, as soon as it is certain: half a character waits for its other half.

    ByteStream    a token is bytes, whatever stands beside it (byte-level BPE, SentencePiece with byte fallback)
    WindowStream  any other tokenizer: decode a small window with and without the new tokens, and take the difference

Both begin after the prompt, so that a first word keeps its space, and both show nothing of the prompt, not even when it
ends inside a character.  The work per token does not grow with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from vllm.inputs.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what a decoder puts where bytes are not UTF-8
_MAX_CONTEXT = 16  # prompt tokens to look at for whole characters before the first window
_MAX_PENDING = 8  # tokens a window waits for the rest of a character; a character has four bytes at most


class TextStream(Protocol):
    """Turns one sequence's output tokens into text."""

    def step(self, token_id: int) -> str:
        """Take the next token and return the text that is now certain."""

    def flush(self) -> str:
        """Return what still waits, with U+FFFD where a character is incomplete.  Nothing follows."""


def text_stream(tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> TextStream:
    """Return the stream of a sequence that begins after the prompt."""
    kind = WindowStream if tokenizer.byte_rule is None else ByteStream
    return kind(tokenizer, prompt_token_ids, skip_special_tokens)


class ByteStream:
    """Decodes UTF-8 from the tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._bytes = tokenizer.token_bytes
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._pending = b""
        # a byte of fallback that is not UTF-8 is replaced alone, byte-level text by whole broken characters
        self._one_by_one = tokenizer.byte_rule != "byte level"
        self._strip = tokenizer.byte_rule == "byte fallback, first space stripped" and not any(
            self._bytes(token) for token in reversed(prompt_token_ids) if token not in self._skip
        )

    def step(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        content = self._bytes(token_id)
        if self._strip and content:
            self._strip = False
            content = content.removeprefix(b" ")
        if not self._pending:
            try:
                return content.decode()
            except UnicodeDecodeError:
                pass
        return self._decode(self._pending + content)

    def flush(self) -> str:
        rest, self._pending = self._pending, b""
        return self._replace(rest) if rest else ""

    def _decode(self, content: bytes) -> str:
        """Decode all but the beginning of a character at the end, which waits."""
        pieces = []
        while True:
            try:
                pieces.append(content.decode())
                self._pending = b""
                break
            except UnicodeDecodeError as error:
                pieces.append(content[: error.start].decode())
                if error.reason == "unexpected end of data":
                    self._pending = content[error.start :]
                    break
                pieces.append(self._replace(content[error.start : error.end]))
                content = content[error.end :]
        return "".join(pieces)

    def _replace(self, broken: bytes) -> str:
        return REPLACEMENT * (len(broken) if self._one_by_one else 1)


class WindowStream:
    """Decodes `context + pending` and takes what is longer than `context` alone.

    The context is the last chunk that gave text.  It begins and ends between two characters.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._pending: list[int] = []
        self._context = self._last_characters(prompt_token_ids)
        self._base = self._decode(self._context)

    def step(self, token_id: int) -> str:
        if token_id in self._skip:
            return ""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        unclear = len(text) <= len(self._base) or text.endswith(REPLACEMENT)  # some decoders drop half a character
        if unclear and len(self._pending) < _MAX_PENDING:
            return ""
        return self._release(text)

    def flush(self) -> str:
        return self._release(self._decode(self._context + self._pending)) if self._pending else ""

    def _last_characters(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """Return the shortest run of tokens at the prompt's end that is whole characters.

        Where the prompt ends inside a character, that character's tokens are left out: they must not show.
        """
        tail = [token for token in prompt_token_ids[-2 * _MAX_CONTEXT :] if token not in self._skip][-_MAX_CONTEXT:]
        for end in range(len(tail), max(0, len(tail) - 4), -1):
            for start in range(end - 1, -1, -1):
                text = self._decode(tail[start:end])
                if text and REPLACEMENT not in text:
                    return tail[start:end]
        # a prompt of spaces may give no text, and yet it is what a first space is stripped from
        return [] if REPLACEMENT in self._decode(tail) else tail

    def _release(self, text: str) -> str:
        new = text[len(self._base) :]
        if new:
            self._context = self._pending
            self._base = self._decode(self._context)
        self._pending = []
        return new

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)
