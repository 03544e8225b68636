"""Sounds at the rate that a model hears them at."""

from __future__ import annotations

import numpy as np

from vllm.inputs.media.item import Sound


def at_rate(sound: Sound, rate: int) -> np.ndarray:
    """Return a sound's samples at another rate.  -> [N] float32"""
    if sound.rate == rate:
        return sound.samples  # type: ignore[no-any-return]
    return _resample(sound.samples, max(1, round(len(sound.samples) * rate / sound.rate)))


def _resample(samples: np.ndarray, count: int) -> np.ndarray:
    """Return as many samples of the same sound, through its spectrum.  [N] -> [count]"""
    spectrum = np.fft.rfft(samples.astype(np.float64))
    kept = np.zeros(count // 2 + 1, dtype=complex)
    shared = min(len(spectrum), len(kept))
    kept[:shared] = spectrum[:shared]
    return (np.fft.irfft(kept, count) * (count / len(samples))).astype(np.float32)
