"""How MiniCPM-o hears a sound, beside what it sees as MiniCPM-V does: in pieces of 30 seconds, each second between marks.

2.5 s   ──▶   <|audio_start|> ▢ × 25 <|audio_end|>   <|audio_start|> ▢ × 25 <|audio_end|>   <|audio_start|> ▢ × 12 <|audio_end|>
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.item import Sound
from vllm.inputs.media.minicpm_v import MiniCPMV
from vllm.inputs.media.sound import at_rate
from vllm.loader.config import read_config
from vllm.loader.published.minicpm_v import SPARE
from vllm.loader.published.tokens import first_of
from vllm.messages import Modality


class MiniCPMO(MiniCPMV):
    """What prepares pictures and sounds for a MiniCPMO."""

    placeholders: Mapping[Modality, str] = {"image": "(<image>./</image>)", "audio": "(<audio>./</audio>)"}

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__(folder)
        config = read_config(folder)
        audio, self.pooled, self.chunk = config.audio_config, config.audio_pool_step, config.audio_chunk
        self.extractor = WhisperFeatureExtractor(
            feature_size=audio["num_mel_bins"], chunk_length=audio["max_source_positions"] // 50
        )
        self.word = first_of(folder, SPARE)

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a picture or a sound, and what the tower takes of it.

        Raises ValueError for an option that nobody knows.
        """
        if modality == "image":
            return super().prepare(modality, data, **options)
        assert isinstance(data, Sound)
        if unknown := options.keys() - self.options.keys():
            raise ValueError(f"mm_processor_kwargs has {min(unknown)!r}; it takes {', '.join(self.options)}")
        rate, longest = self.extractor.sampling_rate, self.extractor.n_samples
        samples = at_rate(data, rate)
        pieces = [samples[start : start + longest] for start in range(0, len(samples), longest)]
        found = self.extractor(pieces, sampling_rate=rate, return_attention_mask=True, return_tensors="np")
        lengths = found["attention_mask"].sum(axis=1)
        count = sum(self._count(int(length)) for length in lengths)
        if not count:
            raise ValueError(f"it is too short: {len(samples) / rate:.3f} s")
        is_heard = np.arange(lengths.max()) < lengths[:, None, None]
        frames = np.where(is_heard, found["input_features"][..., : lengths.max()], np.float32(0.0))
        at_once = self._count(2 * self.chunk)
        seconds = [min(at_once, count - start) for start in range(0, count, at_once)]
        return "".join(f"<|audio_start|>{self.word * number}<|audio_end|>" for number in seconds), {
            "input_features": frames,
            "lengths": lengths,
        }

    def _count(self, frames: int) -> int:
        """Return how many embeddings so many frames become."""
        return (frames + 1) // 2 // self.pooled
