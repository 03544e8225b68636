"""From logits to tokens, for all rows of a step at once.

    logits [R, V] ─ edits ─ penalties ─ temperature ─ min_p ─ top_k ─ top_p ─ draw ─▶ tokens [R]
       └─ raw logprobs                                     └─ processed logprobs

The order in full: raw log-probabilities are taken; then logits processors, allowed tokens, logit bias, bad words,
min_tokens; then repetition, frequency and presence penalty; a greedy row now takes its greatest logit, the lowest token id
among equals; other rows are divided by their temperature and reduced by min_p, then top_k, then top_p (whose share is of
what the first two left), and draw.

What a row gets depends on its own logits, parameters, seed and sequence, and on nothing else in the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vllm.config import LOGPROBS_MODES
from vllm.errors import ConfigError, RequestError
from vllm.messages import NO_TOKEN_LEFT, TokenLogprobs
from vllm.sampling.draw import Scores, draw, keep_survivors
from vllm.sampling.edits import Edits, make_edits
from vllm.sampling.history import History
from vllm.sampling.limits import check_request
from vllm.sampling.logprobs import likely_tokens, token_logprobs
from vllm.sampling.mass import Mass
from vllm.sampling.penalties import apply_penalties
from vllm.sampling.random import as_seed, uniforms
from vllm.sampling.rows import greatest, host, select
from vllm.sampling_params import SamplingParams

_PROMPT_ROWS = 32  # rows of prompt logits alive at once: 20 MB at a vocabulary of 152k
NO_LOGPROBS = -2  # num_logprobs of a request that wants none; -1 is the whole vocabulary
UNSOUND = "the model returned logits that are not numbers"
_HOTTEST = float(np.finfo(np.float32).max)  # beyond it a temperature is infinite: -inf / inf, and what is banned is NaN
_CONTROLS = np.dtype(
    [
        ("seed", "u8"),
        ("num_prompt", "i8"),
        ("temperature", "f8"),  # 0: greedy
        ("top_k", "i8"),
        ("top_p", "f8"),
        ("min_p", "f8"),
        ("repetition", "f8"),
        ("frequency", "f8"),
        ("presence", "f8"),
        ("penalized", "?"),
        ("edited", "?"),  # has edits in every step
        ("min_tokens", "i8"),
        ("num_logprobs", "i8"),
    ]
)


@dataclass(slots=True)
class Sampled:
    """What the rows of a step got."""

    tokens: list[int]
    """[R]; -1 for a row that failed"""
    logprobs: list[TokenLogprobs | None]
    """[R]; None where none were asked for"""
    errors: list[str | None]
    """[R]; None where all is well"""

    def result(self) -> Sampled:
        return self


class Choice(Protocol):
    """Tokens that are chosen, or being chosen."""

    @property
    def tokens(self) -> list[int] | Tensor:
        """[R], where the next step reads them"""

    def result(self) -> Sampled:
        """Wait for what the rows got."""


class Sampler:
    """Holds the sampling parameters of every slot and chooses the next token of the rows of a step.

    `max_logprobs` is the most log-probabilities a request may ask for, -1 for no limit.  `logprobs_mode` says whether
    they are taken before (raw) or after (processed) everything that happens to logits, and normalised or not; those of
    prompts are always raw.
    """

    def __init__(
        self,
        num_slots: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
        *,
        max_logprobs: int = 20,
        logprobs_mode: str = "raw_logprobs",
    ) -> None:
        if logprobs_mode not in LOGPROBS_MODES:
            raise ConfigError(f"logprobs_mode={logprobs_mode!r} is not known; use one of {', '.join(LOGPROBS_MODES)}")
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.max_logprobs = max_logprobs
        self._processed = logprobs_mode.startswith("processed")
        self._as_logits = logprobs_mode.endswith("logits")
        self._controls = np.zeros(num_slots, dtype=_CONTROLS)
        self._edits: list[Edits | None] = [None] * num_slots
        self._asks = [False] * num_slots  # for more than the greatest logit
        self._mass = Mass(vocab_size, self.device)

    def admit(
        self,
        slot: int,
        params: SamplingParams,
        *,
        seed: int,
        eos_token_ids: tuple[int, ...],
        bad_words_ids: list[list[int]],
        num_prompt: int,
    ) -> None:
        """Take a sequence's parameters into a slot.

        Raises RequestError, and changes nothing, if `params` ask for what this model cannot give.
        """
        check_request(params, vocab_size=self.vocab_size, max_logprobs=self.max_logprobs)
        edits = make_edits(params, eos_token_ids, bad_words_ids, self.vocab_size, self.device)
        penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        penalized = penalties != (1.0, 0.0, 0.0)
        self._asks[slot] = not params.greedy or penalized or edits is not None or params.num_logprobs is not None
        self._edits[slot] = edits
        self._controls[slot] = (
            as_seed(seed),
            num_prompt,
            0.0 if params.greedy else min(params.temperature, _HOTTEST),
            params.top_k,
            params.top_p,
            params.min_p,
            *penalties,
            penalized,
            edits is not None and edits.always,
            edits.min_tokens if edits else 0,
            NO_LOGPROBS if params.num_logprobs is None else params.num_logprobs,
        )

    def release(self, slot: int) -> None:
        """Forget a slot's sequence."""
        self._edits[slot] = None
        self._asks[slot] = False
        self._controls[slot] = 0

    def asks(self, slots: list[int]) -> bool:
        """Return whether one of some slots asks for more than the greatest logit."""
        return any(self._asks[slot] for slot in slots)

    def settle(self, peaks: Tensor, tokens: Tensor) -> Choice:
        """Take the greatest logits of R rows that do not ask for more, and their tokens.  [R], [R]"""
        errors: list[str | None] = [None] * len(tokens)
        mark(errors, peaks.tolist(), UNSOUND)
        return Sampled(of_sound(tokens.tolist(), errors), [None] * len(errors), errors)

    def sample(self, logits: Tensor, slots: list[int], lengths: list[int], tokens: Tensor) -> Sampled:
        """Choose the next token of R rows.  [R, V] float32 contiguous, [R], [R], [num_slots, L]

        tokens[slots[r], :lengths[r]] is row r's sequence so far, prompt and output.  The logits are scratch: what is
        in them afterwards is undefined.  A row whose logits hold NaN or +inf, or that has no token left to choose,
        gets an error; the others do not notice.
        """
        assert logits.shape == (len(slots), self.vocab_size)
        errors: list[str | None] = [None] * len(slots)
        if not self.asks(slots):
            best, peaks = greatest(logits)
            mark(errors, peaks, UNSOUND)
            return Sampled(of_sound(best, errors), [None] * len(slots), errors)
        controls = self._controls[slots]
        history = History(tokens, np.array(slots), np.array(lengths), controls["num_prompt"])
        edited = controls["edited"] | (history.num_output < controls["min_tokens"])
        changed = edited | controls["penalized"]
        wanting = controls["num_logprobs"] != NO_LOGPROBS
        saved = np.flatnonzero(changed & wanting & (not self._processed))
        raw = select(logits, saved).clone() if len(saved) else None
        if changed.any():
            mark(errors, logits.amax(dim=-1).tolist(), UNSOUND)
            self._edit(logits, history, np.flatnonzero(edited), errors)
            apply_penalties(logits, history, controls, np.flatnonzero(changed))
        chosen = self._choose(logits, history, controls, errors, NO_TOKEN_LEFT if changed.any() else UNSOUND)
        if raw is not None:
            logits[torch.from_numpy(saved).to(logits.device)] = raw
        sound = _sound(errors)
        found = self._logprobs(logits, chosen, controls, np.flatnonzero(wanting & sound))
        return Sampled(of_sound(chosen.tolist(), errors), found, errors)

    def prompt_logprobs(
        self, hidden: Tensor, targets: Tensor, num_logprobs: int, logits_fn: Callable[[Tensor], Tensor]
    ) -> list[TokenLogprobs]:
        """Return the log-probabilities of prompt tokens.  [n, D], [n] -> [n]

        `logits_fn` turns hidden rows [m, D] into logits [m, V]; it is called for few rows at a time, so that never
        more than 32 × V logits exist.  `num_logprobs` most likely tokens are listed at each position, -1: all.  Where
        logits hold NaN, so do the log-probabilities; the row itself fails when it is sampled.
        """
        found: list[TokenLogprobs] = []
        wanted = host(targets).astype(np.int64)
        for first in range(0, len(hidden), _PROMPT_ROWS):
            logits = logits_fn(hidden[first : first + _PROMPT_ROWS]).float()
            counts = np.full(len(logits), num_logprobs)
            chosen = wanted[first : first + _PROMPT_ROWS]
            found += token_logprobs(logits, chosen, counts, self._mass, as_logits=self._as_logits)
        return found

    def candidates(
        self, logits: Tensor, num_candidates: np.ndarray, temperature: np.ndarray
    ) -> list[list[tuple[int, float]]]:
        """Return each row's most likely tokens with log-probabilities, for beam search.  [R, V], [R], [R] -> [R]

        Best first, equal ones by lower token id.  Log-probabilities are of logits / temperature, 0 meaning 1.  Tokens
        that are impossible are left out, so a row with NaN gets an empty list.
        """
        temperature = np.where(temperature > 0, temperature, 1.0)
        return likely_tokens(logits, num_candidates, temperature, self._mass)

    def _edit(self, logits: Tensor, history: History, rows: np.ndarray, errors: list[str | None]) -> None:
        """Apply the rows' own edits, in place; a failing logits processor fails its row."""
        for row in rows.tolist():
            edits = self._edits[int(history.slots[row])]
            if edits is None or errors[row]:
                continue
            try:
                edits.apply(logits[row], history, row)
            except RequestError as error:
                errors[row] = str(error)

    def _choose(
        self, logits: Tensor, history: History, controls: np.ndarray, errors: list[str | None], cause: str
    ) -> np.ndarray:
        """Return every sound row's token, and note `cause` for rows that have none.  [R, V], …, [R] -> [R]"""
        best, peaks = greatest(logits)
        mark(errors, peaks, cause)
        chosen = np.array(best)
        drawn = np.flatnonzero((controls["temperature"] > 0) & _sound(errors))
        if len(drawn):
            scores = Scores(logits, np.array(peaks), controls)
            random = uniforms(controls["seed"][drawn], history.num_output[drawn])
            chosen[drawn] = draw(scores, drawn, random, self._mass)
            if self._processed:
                keep_survivors(scores, drawn[controls["num_logprobs"][drawn] != NO_LOGPROBS], self._mass)
        return chosen

    def _logprobs(
        self, logits: Tensor, chosen: np.ndarray, controls: np.ndarray, rows: np.ndarray
    ) -> list[TokenLogprobs | None]:
        found: list[TokenLogprobs | None] = [None] * len(chosen)
        if len(rows):
            counts = controls["num_logprobs"][rows]
            values = token_logprobs(select(logits, rows), chosen[rows], counts, self._mass, as_logits=self._as_logits)
            for row, value in zip(rows.tolist(), values, strict=True):
                found[row] = value
        return found


def mark(errors: list[str | None], peaks: list[float], text: str) -> None:
    """Note an error for each row whose greatest logit is no finite number: it holds NaN or +inf, or only -inf.  [R]"""
    for row, peak in enumerate(peaks):
        if not math.isfinite(peak):
            errors[row] = errors[row] or text


def of_sound(tokens: list[int], errors: list[str | None]) -> list[int]:
    """Return the tokens, but -1 for rows with an error."""
    return [-1 if error else token for token, error in zip(tokens, errors, strict=True)]


def _sound(errors: list[str | None]) -> np.ndarray:
    """Return which rows have no error.  [R] bool"""
    return np.array([error is None for error in errors], dtype=bool)
