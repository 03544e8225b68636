"""The text of a sequence as it grows, up to its stop string.

    token ids ──▶ TextStream ──▶ StopMatcher ──▶ released text
                                 holds back what may be the beginning of a stop string

Text is matched character by character, so that the outcome does not depend on how it is cut into tokens or steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm.engine.text_stream import TextStream, text_stream
from vllm.inputs.tokenizer import Tokenizer
from vllm.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class StopHit:
    """A stop string was found."""

    stop: str
    num_tokens: int
    """How many of the pushed tokens belong to the output; the last of them completed the stop string."""


class Detokenizer:
    """Text of one output sequence.  With `detokenize=False` there is none."""

    def __init__(self, tokenizer: Tokenizer | None, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        self._stream: TextStream | None = None
        if params.detokenize and tokenizer is not None:
            self._stream = text_stream(tokenizer, prompt_token_ids, params.skip_special_tokens)
        self._matchers = [StopMatcher(stop) for stop in params.stop_strings]
        self._keep_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        self._released: list[str] = []
        self._num_taken = 0  # pieces of `_released` that take_delta has given
        self._held = ""  # the end of the text, which may turn out to be the beginning of a stop string
        self._done = False

    @property
    def text(self) -> str:
        """All text released so far."""
        whole = "".join(self._released)
        if len(self._released) > 1:
            taken = "".join(self._released[: self._num_taken])
            self._released = [taken, whole[len(taken) :]]
            self._num_taken = 1
        return whole

    def push(self, token_ids: Sequence[int]) -> StopHit | None:
        """Take new output tokens; return the stop string they complete, if any.

        A token that ends the output without being part of its text (an end or stop token) is not pushed.
        """
        if self._stream is None or self._done:
            return None
        for index, token in enumerate(token_ids):
            self._num_tokens += 1
            stop = self._append(self._stream.step(token))
            if stop is not None:
                return StopHit(stop, index + 1)
        return None

    def take_delta(self) -> str:
        """Return the text released since the last call."""
        delta = "".join(self._released[self._num_taken :])
        self._num_taken = len(self._released)
        return delta

    def finish(self) -> None:
        """Release all that waits: the output has ended."""
        if self._stream is not None and not self._done:
            self._release(self._held + self._stream.flush())
            self._held = ""
        self._done = True

    def _append(self, new: str) -> str | None:
        """Match the new text; release what can't be part of a stop string any more."""
        if not self._matchers:
            self._release(new)
            return None
        end, matcher = self._find(new)
        text = self._held + new
        if matcher is not None and self._num_tokens > self._min_tokens:
            end += len(self._held)
            self._release(text[: end if self._keep_stop else end - len(matcher.stop)])
            self._held, self._done = "", True
            return matcher.stop
        num_held = 0 if self._keep_stop else max(matcher.num_matched for matcher in self._matchers)
        self._release(text[: len(text) - num_held])
        self._held = text[len(text) - num_held :]
        return None

    def _find(self, new: str) -> tuple[int, StopMatcher | None]:
        """Return where in the new text the first stop string is complete, and which.

        Of several that are complete at the same character it is the longest, which began first.  A stop string within
        the first `min_tokens` tokens is passed over.
        """
        active = self._num_tokens > self._min_tokens
        for end, character in enumerate(new, start=1):
            hits = [matcher for matcher in self._matchers if matcher.feed(character)]
            if hits and active:
                return end, max(hits, key=lambda matcher: len(matcher.stop))
        return len(new), None

    def _release(self, text: str) -> None:
        if text:
            self._released.append(text)


class StopMatcher:
    """Finds one string in a text fed character by character (Knuth, Morris & Pratt 1977).

    `num_matched` is the length of the longest end of the text that is a beginning of the string.
    """

    __slots__ = ("_fallback", "num_matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.num_matched = 0
        self._fallback = _borders(stop)

    def feed(self, character: str) -> bool:
        """Take the next character; return whether the text now ends in the string."""
        matched = self.num_matched
        while matched and self.stop[matched] != character:
            matched = self._fallback[matched]
        if self.stop[matched] == character:
            matched += 1
        found = matched == len(self.stop)
        self.num_matched = self._fallback[matched] if found else matched
        return found


def _borders(stop: str) -> list[int]:
    """Entry n: the length of the longest proper beginning of stop[:n] that is also its end."""
    borders = [0] * (len(stop) + 1)
    matched = 0
    for end in range(1, len(stop)):
        while matched and stop[matched] != stop[end]:
            matched = borders[matched]
        if stop[matched] == stop[end]:
            matched += 1
        borders[end + 1] = matched
    return borders
