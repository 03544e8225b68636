"""How Ultravox hears a sound: in windows of 30 seconds, the last one as long as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vllm.inputs.media.item import Sound
from vllm.inputs.media.sound import at_rate
from vllm.loader.config import read_config
from vllm.loader.published.tokens import first_of
from vllm.loader.published.ultravox import SPARE
from vllm.messages import Modality


class Ultravox:
    """What prepares sounds for an UltravoxModel."""

    placeholders: Mapping[Modality, str] = {"audio": "<|audio|>"}

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperFeatureExtractor

        config = read_config(folder)
        self.extractor = WhisperFeatureExtractor(feature_size=config.audio_config["num_mel_bins"])
        self.window = 2 * config.audio_config["max_source_positions"]  # frames, of which the encoder joins two
        self.joined = 2 * config.projector["stack_factor"]  # frames, to one embedding
        self.word = first_of(folder, SPARE)

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a sound, and what is heard in each window of it.  Raises ValueError for any option."""
        assert isinstance(data, Sound)
        if options:
            raise ValueError(f"mm_processor_kwargs: there are no options, and {min(options)!r} is given")
        rate, hop = self.extractor.sampling_rate, self.extractor.hop_length
        samples = at_rate(data, rate)
        samples = np.pad(samples, (0, max(0, 2 * hop - len(samples))))  # less can't be heard
        found = self.extractor(
            samples,
            sampling_rate=rate,
            padding="longest",
            pad_to_multiple_of=hop,
            truncation=False,
            return_tensors="np",
        )["input_features"][0]
        starts = range(0, found.shape[1], self.window)
        lengths = [min(self.window, found.shape[1] - start) for start in starts]
        if len(lengths) > 1:
            found = np.pad(found, ((0, 0), (0, self.window - lengths[-1])))
        windows = found.reshape(len(found), len(lengths), -1).swapaxes(0, 1)
        count = sum(-(-length // self.joined) for length in lengths)
        return self.word * count, {"input_features": windows, "lengths": np.array(lengths)}
