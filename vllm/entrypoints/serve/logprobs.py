"""Log-probabilities in the shapes of the OpenAI API: one for completions, one for chats."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.entrypoints.serve.protocol import (
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TokenLogprob,
    TopLogprob,
)
from vllm.inputs.tokenizer import Tokenizer
from vllm.outputs import Logprob, PositionLogprobs

_LEAST = -9999.0  # JSON has no infinity


class LogprobWriter:
    """Writes the log-probabilities of one request."""

    def __init__(self, tokenizer: Tokenizer | None, as_ids: bool) -> None:
        """`as_ids`: write tokens as token_id:N, which tells tokens of equal text apart."""
        self.tokenizer = tokenizer
        self.as_ids = as_ids or tokenizer is None

    def completion(
        self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs | None], offset: int, count: int
    ) -> CompletionLogprobs:
        """Return the entries of `token_ids`, whose text begins at `offset`, with the `count` most likely of each.

        A position without log-probabilities is the first of a prompt.
        """
        result = CompletionLogprobs([], [], [], [])
        for token, position in zip(token_ids, positions, strict=True):
            text = self.token(token, position[token] if position else None)
            result.text_offset.append(offset)
            result.tokens.append(text)
            offset += len(text)
            if position is None:
                result.token_logprobs.append(None)
                result.top_logprobs.append(None)
                continue
            top: dict[str, float] = {}
            for other, entry in [(token, position[token]), *_ranked(position, count)]:
                top.setdefault(self.token(other, entry), _finite(entry.logprob))  # equal texts: the likelier one
            result.token_logprobs.append(_finite(position[token].logprob))
            result.top_logprobs.append(top)
        return result

    def chat(self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs], count: int) -> ChatLogprobs:
        """Return the entries of `token_ids`, with the `count` most likely of each."""
        content = []
        for token, position in zip(token_ids, positions, strict=True):
            chosen = position[token]
            top = [
                TopLogprob(self.token(other, entry), _finite(entry.logprob), self._bytes(other, entry))
                for other, entry in _ranked(position, count)
            ]
            content.append(
                TokenLogprob(self.token(token, chosen), _finite(chosen.logprob), self._bytes(token, chosen), top)
            )
        return ChatLogprobs(content)

    def token(self, token: int, entry: Logprob | None) -> str:
        """Return how a token is written."""
        if self.as_ids or self.tokenizer is None:
            return f"token_id:{token}"
        if entry is not None and entry.decoded_token is not None:
            return entry.decoded_token
        return self.tokenizer.token_text(token)

    def _bytes(self, token: int, entry: Logprob) -> list[int] | None:
        """A token's own bytes, where it is a run of bytes: its text may be half a character."""
        if self.tokenizer is None:
            return None
        if self.tokenizer.byte_rule is not None:
            return list(self.tokenizer.token_bytes(token))
        return list((entry.decoded_token or "").encode())


def prompt_logprobs(positions: Sequence[PositionLogprobs | None] | None) -> PromptLogprobs | None:
    """Return a prompt's log-probabilities, by token id."""
    if positions is None:
        return None
    return [
        None
        if position is None
        else {
            str(token): PromptLogprob(_finite(entry.logprob), entry.rank, entry.decoded_token)
            for token, entry in position.items()
        }
        for position in positions
    ]


def _ranked(position: PositionLogprobs, count: int) -> list[tuple[int, Logprob]]:
    """Return the `count` most likely tokens (-1: all that are there), best first."""
    ranked = sorted(position.items(), key=lambda item: item[1].rank or 0)
    return ranked if count < 0 else ranked[:count]


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
