"""The sampler of devices that work by themselves: what it chooses stays there, and the host reads it later.

    logits [R, V] ─ edits ─ penalties ─ choose ─▶ tokens [R] ──▶ the next step
       └─ log-probabilities                         └── copied to the host, which looks at them when it wants to

It follows the rules of `Sampler`, but draws in the order of token ids, whatever the filters.  What needs a sequence's tokens on
the host (bad words, users' callables) waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vllm import ops
from vllm.messages import NO_TOKEN_LEFT, TokenLogprobs
from vllm.ops.staging import fetch, sent
from vllm.sampling.history import History
from vllm.sampling.random import uniforms
from vllm.sampling.rows import chunks
from vllm.sampling.sampler import NO_LOGPROBS, UNSOUND, Sampled, Sampler, mark, of_sound

_PENALIZED_ROWS = 16  # at a vocabulary of 152k their counts take 10 MB
_PROMPT_ROWS = 256


@dataclass(frozen=True, slots=True)
class Choosing:
    """Tokens that are being chosen."""

    tokens: Tensor
    """[R] int32, on the device"""
    finish: Callable[[], Sampled]

    def result(self) -> Sampled:
        """Wait for what the rows got."""
        return self.finish()


class DeviceSampler(Sampler):
    """Chooses the next tokens of the rows of a step on the device."""

    def sample(self, logits: Tensor, slots: list[int], lengths: list[int], tokens: Tensor) -> Choosing:  # type: ignore[override]
        """Choose the next token of R rows.  [R, V] float32, [R], [R], [num_slots, L]

        As in `Sampler.sample`, but it returns before anything is chosen.
        """
        errors: list[str | None] = [None] * len(slots)
        controls = self._controls[slots]
        history = History(tokens, np.array(slots), np.array(lengths), controls["num_prompt"])
        edited = controls["edited"] | (history.num_output < controls["min_tokens"])
        changed = edited | controls["penalized"]
        wanting = np.flatnonzero(controls["num_logprobs"] != NO_LOGPROBS)
        waits = []
        if changed.any():
            waits.append(fetch(logits.amax(dim=-1)))
            raw = None if self._processed or not len(wanting) else _rows(logits, wanting).clone()
            self._edit(logits, history, np.flatnonzero(edited), errors)
            _penalize(logits, history, controls, np.flatnonzero(controls["penalized"]))
        else:
            raw = _rows(logits, wanting) if len(wanting) else None
        borders = None
        if controls["temperature"].any():
            chosen, peaks, borders = ops.choose(logits, self._for_device(controls, history))
        else:
            peaks, chosen = ops.greatest(logits)
        waits.append(fetch(chosen, peaks))
        logprobs = None
        if len(wanting):
            if self._processed:
                raw = _rows(logits, wanting) if borders is None else _left(logits, borders, controls, wanting)
            assert raw is not None
            logprobs = self._start_logprobs(raw, _rows(chosen, wanting), controls["num_logprobs"][wanting])

        def finish() -> Sampled:
            *before, (ids, found) = [wait() for wait in waits]
            if before:
                mark(errors, before[0][0].tolist(), UNSOUND)
            mark(errors, found.tolist(), NO_TOKEN_LEFT if before else UNSOUND)
            listed: list[TokenLogprobs | None] = [None] * len(ids)
            if logprobs is not None:
                for row, value in zip(wanting.tolist(), logprobs(), strict=True):
                    listed[row] = None if errors[row] else value
            return Sampled(of_sound(ids.tolist(), errors), listed, errors)

        return Choosing(chosen, finish)

    def settle(self, peaks: Tensor, tokens: Tensor) -> Choosing:
        wait = fetch(peaks, tokens)

        def finish() -> Sampled:
            found, ids = wait()
            errors: list[str | None] = [None] * len(ids)
            mark(errors, found.tolist(), UNSOUND)
            return Sampled(of_sound(ids.tolist(), errors), [None] * len(ids), errors)

        return Choosing(tokens, finish)

    def prompt_logprobs(
        self, hidden: Tensor, targets: Tensor, num_logprobs: int, logits_fn: Callable[[Tensor], Tensor]
    ) -> list[TokenLogprobs]:
        """Return the log-probabilities of prompt tokens.  [n, D], [n] -> [n]"""
        found: list[TokenLogprobs] = []
        for first in range(0, len(hidden), _PROMPT_ROWS):
            logits = logits_fn(hidden[first : first + _PROMPT_ROWS]).float()
            counts = np.full(len(logits), num_logprobs)
            found += self._start_logprobs(logits, targets[first : first + _PROMPT_ROWS], counts)()
        return found

    def candidates(
        self, logits: Tensor, num_candidates: np.ndarray, temperature: np.ndarray
    ) -> list[list[tuple[int, float]]]:
        """Return each row's most likely tokens with log-probabilities, for beam search.  [R, V], [R], [R] -> [R]"""
        heat = sent(np.where(temperature > 0, temperature, 1.0).astype(np.float32), logits.device)
        scaled = torch.log_softmax(logits / heat[:, None], dim=-1)
        ids, values = fetch(*_most_likely(scaled, int(num_candidates.max())))()
        found = []
        for row, count in enumerate(num_candidates.tolist()):
            pairs = zip(ids[row, :count].tolist(), values[row, :count].tolist(), strict=True)
            found.append([(token, value) for token, value in pairs if np.isfinite(value)])
        return found

    def _for_device(self, controls: np.ndarray, history: History) -> Tensor:
        """Return what `ops.choose` wants of the rows.  -> [5, R] float32"""
        values = np.stack(
            (
                controls["temperature"],
                np.maximum(controls["top_k"], 0),
                controls["top_p"],
                controls["min_p"],
                uniforms(controls["seed"], history.num_output),
            )
        ).astype(np.float32)
        np.minimum(values[4], np.float32(1 - 2**-24), out=values[4])
        return sent(values, self.device)

    def _start_logprobs(self, logits: Tensor, chosen: Tensor, counts: np.ndarray) -> Callable[[], list[TokenLogprobs]]:
        """Start to compute the chosen tokens' log-probabilities and ranks and the most likely tokens.  [n, V], [n], [n]"""
        values = logits if self._as_logits else torch.log_softmax(logits, dim=-1)
        own = values.gather(1, chosen.long()[:, None])
        ranks = 1 + (values > own).sum(dim=-1)
        most = logits.shape[1] if (counts == -1).any() else int(counts.max())
        ids, best = _most_likely(values, min(most, logits.shape[1]))
        wait = fetch(own[:, 0], ranks, ids, best)

        def finish() -> list[TokenLogprobs]:
            owns, ranked, top_ids, top_values = wait()
            found = []
            for row, count in enumerate(counts.tolist()):
                end = count if count >= 0 else logits.shape[1]
                found.append(
                    TokenLogprobs(
                        float(owns[row]), int(ranked[row]), top_ids[row, :end].tolist(), top_values[row, :end].tolist()
                    )
                )
            return found

        return finish


def _most_likely(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return each row's `count` greatest values and where they are, equal ones by lower place.  [n, V] -> [n, count] twice"""
    count = min(count, values.shape[1])
    places = torch.arange(values.shape[1], device=values.device)
    order = (ops.rising_keys(values).long() << 32) | (0xFFFFFFFF - places)
    found = order.topk(count, dim=-1).values
    ids = 0xFFFFFFFF - (found & 0xFFFFFFFF)
    return ids, values.gather(1, ids)


def _penalize(logits: Tensor, history: History, controls: np.ndarray, penalized: np.ndarray) -> None:
    """Apply repetition, frequency and presence penalty in place; see `vllm.sampling.penalties`."""
    device, vocab_size = logits.device, logits.shape[1]
    for rows in chunks(penalized, _PENALIZED_ROWS):
        facts = sent(np.stack((rows, history.slots[rows], history.lengths[rows], history.num_prompt[rows])), device)
        names = ("repetition", "frequency", "presence")
        repetition, frequency, presence = sent(
            np.stack([controls[name][rows] for name in names]).astype(np.float32), device
        ).unsqueeze(-1)
        longest = int(history.lengths[rows].max())
        place = torch.arange(longest, device=device)
        ids = history.tokens[facts[1], :longest].long()
        known = (place < facts[2][:, None]) & (ids >= 0) & (ids < vocab_size)
        nowhere = torch.full_like(ids, vocab_size)
        seen = torch.zeros(len(rows), vocab_size + 1, dtype=torch.bool, device=device)
        seen.scatter_(1, torch.where(known, ids, nowhere), True)
        counts = torch.zeros(len(rows), vocab_size + 1, dtype=torch.float32, device=device)
        written = torch.where(known & (place >= facts[3][:, None]), ids, nowhere)
        counts.scatter_add_(1, written, torch.ones_like(written, dtype=torch.float32))
        counts = counts[:, :vocab_size]
        x = logits[facts[0]]
        x = torch.where(seen[:, :vocab_size], torch.where(x > 0, x / repetition, x * repetition), x)
        logits[facts[0]] = x - frequency * counts - presence * (counts > 0)


def _left(logits: Tensor, borders: Tensor, controls: np.ndarray, wanting: np.ndarray) -> Tensor:
    """Return the rows' logits divided by temperature, -inf where the filters dropped them.  [R, V], [2, R], …, [n] -> [n, V]"""
    x = _rows(logits, wanting)
    border, ties = _rows(borders.T, wanting).T.unsqueeze(-1)
    key = ops.rising_keys(x)
    on = key == border
    kept = (key > border) | (on & (on.cumsum(-1) <= ties))
    heat, min_p = sent(
        np.stack([controls[name][wanting] for name in ("temperature", "min_p")]).astype(np.float32), logits.device
    ).unsqueeze(-1)
    drawn = heat > 0
    scaled = torch.where(drawn, x / heat.clamp_min(1e-30), x)
    likely = torch.exp(scaled - scaled.amax(-1, keepdim=True)) >= min_p
    return scaled.masked_fill(drawn & ~(kept & likely), float("-inf"))


def _rows(tensor: Tensor, rows: np.ndarray) -> Tensor:
    """Return some rows of a tensor, without waiting for the device."""
    return tensor if len(rows) == len(tensor) else tensor[sent(rows, tensor.device)]
