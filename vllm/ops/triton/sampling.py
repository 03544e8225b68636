"""Choose a token per row of logits without sorting them, one program per row.

What top_k and top_p leave is everything above a border, and some of what lies on it: those with the lowest ids.  The border is
found by bisection over the logits as integers that rise with them; each of its passes reads the row once, from the second-level
cache.  A draw walks over what is left in the order of ids.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096


def choose(logits: Tensor, controls: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose each row's token.  [R, V] float32, [5, R] float32 -> [R] int32, [R] float32, [2, R] int32

    The controls are temperatures (0: the greatest logit is chosen), top_k and top_p (0 and 1: off), min_p and uniform
    numbers in (0, 1).  Beside the tokens come the rows' greatest logits, NaN where a row holds one, and what the filters left:
    the border, as `ops.rising_keys` makes it of a logit, and how many of those on it.
    """
    rows, vocab_size = logits.shape
    tokens = torch.empty(rows, dtype=torch.int32, device=logits.device)
    peaks = torch.empty(rows, dtype=torch.float32, device=logits.device)
    borders = torch.empty(2, rows, dtype=torch.int32, device=logits.device)
    block = min(_BLOCK, triton.next_power_of_2(vocab_size))
    _choose[(rows,)](
        logits, controls, tokens, peaks, borders, rows, vocab_size, logits.stride(0), BLOCK=block, num_warps=8
    )
    return tokens, peaks, borders


def greatest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Find each row's greatest logit, NaN if it holds one, and where it is, of equal ones the first.  [R, V] -> [R], [R] int32

    Several programs share a row, so that a few rows do not leave the device idle.
    """
    rows, vocab_size = logits.shape
    parts = max(1, min(64, 512 // rows, triton.cdiv(vocab_size, _BLOCK // 4)))
    peaks = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, parts, dtype=torch.int32, device=logits.device)
    share = triton.cdiv(triton.cdiv(vocab_size, parts), _BLOCK // 4) * (_BLOCK // 4)
    _greatest[(rows, parts)](logits, peaks, places, vocab_size, share, logits.stride(0), BLOCK=_BLOCK // 4, num_warps=4)
    peak = torch.empty(rows, dtype=torch.float32, device=logits.device)
    place = torch.empty(rows, dtype=torch.int32, device=logits.device)
    _greatest_part[(rows,)](peaks, places, peak, place, PARTS=parts, PADDED=triton.next_power_of_2(parts), num_warps=1)
    return peak, place


@triton.jit
def _greatest(logits, peaks, places, vocab_size, share, logits_row, BLOCK: tl.constexpr):
    row, part = tl.program_id(0), tl.program_id(1)
    peak = float("-inf")
    place = part * share
    unsound = 0
    for first in tl.range(part * share, tl.minimum(vocab_size, (part + 1) * share), BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row.to(tl.int64) * logits_row + v, v < vocab_size, float("-inf"))
        unsound += tl.sum((x != x).to(tl.int32), 0)  # noqa: PLR0124
        x = tl.where(x != x, float("-inf"), x)  # noqa: PLR0124
        best = tl.max(x, 0)
        index = tl.min(tl.where(x == best, v, vocab_size), 0)
        place = tl.where(best > peak, index, place)
        peak = tl.maximum(best, peak)
    tl.store(peaks + row * tl.num_programs(1) + part, tl.where(unsound > 0, float("nan"), peak))
    tl.store(places + row * tl.num_programs(1) + part, place)


@triton.jit
def _greatest_part(peaks, places, peak, place, PARTS: tl.constexpr, PADDED: tl.constexpr):
    row = tl.program_id(0)
    part = tl.arange(0, PADDED)
    x = tl.load(peaks + row * PARTS + part, part < PARTS, float("-inf"))
    unsound = tl.sum((x != x).to(tl.int32), 0)  # noqa: PLR0124
    x = tl.where(x != x, float("-inf"), x)  # noqa: PLR0124
    best = tl.max(x, 0)
    found = tl.load(places + row * PARTS + part, part < PARTS, 2147483647)
    tl.store(peak + row, tl.where(unsound > 0, float("nan"), best))
    tl.store(place + row, tl.min(tl.where(x == best, found, 2147483647), 0))


@triton.jit
def _key(x):
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _middle(low, high):
    """The integer halfway, rounded up."""
    return ((low.to(tl.int64) + high.to(tl.int64) + 1) >> 1).to(tl.int32)


@triton.jit
def _above(row, vocab_size, key, peak, per_temperature, min_p, BLOCK: tl.constexpr):
    """Number and mass of the tokens whose key is at least `key`."""
    count, mass = 0, 0.0
    for first in tl.range(0, vocab_size, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, v < vocab_size, float("-inf"))
        weight = tl.exp((x - peak) * per_temperature)
        kept = (v < vocab_size) & (_key(x) >= key) & (weight >= min_p) & (weight > 0)
        count += tl.sum(kept.to(tl.int32), 0)
        mass += tl.sum(tl.where(kept, weight, 0.0), 0)
    return count, mass


@triton.jit
def _choose(logits, controls, tokens, peaks, borders, rows, vocab_size, logits_row, BLOCK: tl.constexpr):
    r = tl.program_id(0)
    row = logits + r.to(tl.int64) * logits_row
    temperature, top_k = tl.load(controls + r), tl.load(controls + rows + r)
    top_p, min_p = tl.load(controls + 2 * rows + r), tl.load(controls + 3 * rows + r)
    uniform = tl.load(controls + 4 * rows + r)

    peak = float("-inf")
    token = 0
    unsound = 0
    for first in tl.range(0, vocab_size, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, v < vocab_size, float("-inf"))
        unsound += tl.sum((x != x).to(tl.int32), 0)  # noqa: PLR0124
        x = tl.where(x != x, float("-inf"), x)  # noqa: PLR0124
        best = tl.max(x, 0)
        index = tl.min(tl.where(x == best, v, vocab_size), 0)
        token = tl.where(best > peak, index, token)
        peak = tl.maximum(best, peak)
    border = -2147483648
    ties = 2147483647
    is_sound = (unsound == 0) & (peak > float("-inf")) & (peak < float("inf"))
    if (temperature > 0) & is_sound:
        per_temperature = 1 / temperature
        count, mass = _above(row, vocab_size, border, peak, per_temperature, min_p, BLOCK)
        highest = _key(peak)
        if (top_k > 0) & (top_k < count):
            low, high = border, highest  # at least top_k tokens have a key of at least low
            while low < high:
                middle = _middle(low, high)
                found, _ = _above(row, vocab_size, middle, peak, per_temperature, min_p, BLOCK)
                low = tl.where(found >= top_k, middle, low)
                high = tl.where(found >= top_k, high, middle - 1)
            border = low
            found, above = _above(row, vocab_size, border + 1, peak, per_temperature, min_p, BLOCK)
            found = tl.where(border == highest, 0, found)
            above = tl.where(border == highest, 0.0, above)
            ties = (top_k - found).to(tl.int32)
            x = tl.where(border >= 0, border, border ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
            mass = above + ties * tl.exp((x - peak) * per_temperature)
        if top_p < 1:
            share = top_p * mass
            low, high = border, highest
            while low < high:
                middle = _middle(low, high)
                _, above = _above(row, vocab_size, middle, peak, per_temperature, min_p, BLOCK)
                low = tl.where(above >= share, middle, low)
                high = tl.where(above >= share, high, middle - 1)
            _, above = _above(row, vocab_size, low + 1, peak, per_temperature, min_p, BLOCK)
            above = tl.where(low == highest, 0.0, above)
            x = tl.where(low >= 0, low, low ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
            weight = tl.exp((x - peak) * per_temperature)
            needed = tl.where(weight > 0, tl.maximum(tl.ceil((share - above) / weight), 1.0), 1.0)
            needed = tl.minimum(needed, 1e9).to(tl.int32)
            ties = tl.where(low == border, tl.minimum(ties, needed), needed)
            border = low
            mass = above + ties * weight
        # the number of those on the border may be overestimated, where fewer are there; the mass then is too
        if (ties < 2147483647) & (border > -2147483648):
            on_border, mass_border = _above(row, vocab_size, border, peak, per_temperature, min_p, BLOCK)
            found, above = _above(row, vocab_size, border + 1, peak, per_temperature, min_p, BLOCK)
            found = tl.where(border == highest, 0, found)
            ties = tl.minimum(ties, on_border - found)
            above = tl.where(border == highest, 0.0, above)
            x = tl.where(border >= 0, border, border ^ 0x7FFFFFFF).to(tl.float32, bitcast=True)
            mass = above + ties * tl.exp((x - peak) * per_temperature)
        target = uniform * mass
        running = 0.0
        seen = 0
        drawn = -1
        last = token
        for first in tl.range(0, vocab_size, BLOCK):
            v = first + tl.arange(0, BLOCK)
            x = tl.load(row + v, v < vocab_size, float("-inf"))
            key = _key(x)
            on = ((key == border) & (v < vocab_size)).to(tl.int32)
            weight = tl.exp((x - peak) * per_temperature)
            kept = (key > border) | ((on > 0) & (seen + tl.cumsum(on, 0) <= ties))
            kept = kept & (v < vocab_size) & (weight >= min_p)
            weight = tl.where(kept, weight, 0.0)
            share = tl.sum(weight, 0)
            seen += tl.sum(on, 0)
            last = tl.maximum(last, tl.max(tl.where(weight > 0, v, -1), 0))
            if (drawn < 0) & (running + share > target):
                passed = (running + tl.cumsum(weight, 0) > target) & (weight > 0)
                index = tl.min(tl.where(passed, v, vocab_size), 0)
                drawn = tl.where(index < vocab_size, index, drawn)
            running += share
        token = tl.where(drawn >= 0, drawn, last)
    tl.store(tokens + r, token)
    tl.store(peaks + r, tl.where(unsound > 0, float("nan"), peak))
    tl.store(borders + r, border)
    tl.store(borders + rows + r, ties)
