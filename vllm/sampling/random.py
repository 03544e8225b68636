"""Random numbers by counter: the draw of a row is a function of its seed and of the position it draws for.

No generator has a state, so what a request draws cannot depend on what else runs, on preemption or on the order of rows.
The mixing function is the finalizer of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", OOPSLA 2014).
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio, made odd
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return one number in (0, 1) per row.  [R] uint64, [R] int64 -> [R] float64

    Seeds are mixed before positions are added: seeds that differ by a multiple of the step would share a stream.
    """
    streams = _mix(seeds + _GAMMA)
    bits = _mix(streams + _GAMMA * (positions.astype(np.uint64) + np.uint64(1)))
    # 52 bits and a half: neither 0 nor 1 can come out, and u * total stays below total after rounding.
    return ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def as_seed(seed: int) -> np.uint64:
    """Return the 64-bit pattern of any Python integer."""
    return np.uint64(seed & 0xFFFFFFFFFFFFFFFF)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
    bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
    return bits ^ (bits >> np.uint64(31))
