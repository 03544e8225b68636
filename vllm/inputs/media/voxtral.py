"""How Voxtral hears a sound: in windows of 30 seconds, the last one filled up with silence.

transformers' processor reads conversations only, by a tokenizer of another package; a prompt here has [AUDIO] where a sound is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.inputs.media.item import Sound
from vllm.inputs.media.sound import at_rate
from vllm.messages import Modality


class Voxtral:
    """What prepares sounds for a VoxtralForConditionalGeneration."""

    placeholders: Mapping[Modality, str] = {"audio": "[AUDIO]"}

    def __init__(self, folder: Path) -> None:
        from transformers import WhisperFeatureExtractor

        self.extractor = WhisperFeatureExtractor.from_pretrained(str(folder))
        encoder = json.loads((folder / "config.json").read_bytes())["audio_config"]
        joined = encoder["intermediate_size"] // encoder["hidden_size"]  # states of the encoder, to one embedding
        self.num_places = encoder["max_source_positions"] // joined

    def prepare(self, modality: Modality, data: Any, **options: Any) -> tuple[str, Mapping[str, Any]]:
        """Return the places of a sound, and what is heard in each window of it.  Raises ValueError for any option."""
        assert isinstance(data, Sound)
        if options:
            raise ValueError(f"mm_processor_kwargs: there are no options, and {min(options)!r} is given")
        rate, whole = self.extractor.sampling_rate, self.extractor.n_samples
        found = self.extractor(
            at_rate(data, rate), sampling_rate=rate, padding="longest", truncation=False, pad_to_multiple_of=whole,
            return_tensors="np",
        )  # fmt: skip
        size, frames = self.extractor.feature_size, self.extractor.nb_max_frames
        windows = found["input_features"].reshape(size, -1, frames).swapaxes(0, 1)
        return "[BEGIN_AUDIO]" + "[AUDIO]" * self.num_places * len(windows), {"input_features": windows}
