"""Ultravox, with its text part in the checkpoint and in a repository of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.media.cases import GREEDY, RATE, wave
from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker
from vllm.errors import ModelError, RequestError

AUDIO = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
}
AUDIO |= {"num_mel_bins": 16, "max_source_positions": 50, "decoder_layers": 1, "vocab_size": 60, "pad_token_id": 1}
TEXT = "<|audio|>"
SPLIT = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}


def ultravox(place: Path, tokenizer_folder: Path, *, late_norm: bool = False, apart: bool = False) -> Published:
    maker = Maker(tokenizer_folder)
    maker.tokenizer.add_special_tokens({"additional_special_tokens": ["<|reserved_special_token_0|>"]})
    maker.use(maker.tokenizer)
    text = text_part(maker, "llama", tie_word_embeddings=apart)
    encoder = drawn(WhisperEncoder(transformers.WhisperConfig(**AUDIO)))
    projector = drawn(_projector(late_norm)).state_dict()
    tower = {f"audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tower |= {f"multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    config: dict[str, Any] = {
        "architectures": ["UltravoxModel"], "model_type": "ultravox", "torch_dtype": "float32", "audio_config": AUDIO,
        "auto_map": {"AutoConfig": "ultravox_config.UltravoxConfig"}, "hidden_size": 40, "stack_factor": 4,
        "projector_act": "swiglu", "projector_ln_mid": not late_norm, "vocab_size": maker.vocab_size,
        "text_model_lora_config": {"r": 0},
    }  # fmt: skip
    if apart:
        other = written(place.parent / "reader", maker.tokenizer, text.config.to_dict(), text, {"": ""}, {})
        config["text_model_id"] = str(other)
    else:
        config["text_config"] = text.config.to_dict()
    folder = written(place, maker.tokenizer, config, text, {} if apart else SPLIT, tower)
    word = "<|audio|>"  # one of the tokens that the tokenizer happens to have
    return Published(
        folder, maker.tokenizer, text, TEXT, (maker.id(word),), lambda sound: heard(sound, word, encoder, projector)
    )


def _projector(late_norm: bool) -> nn.Module:
    module: Any = nn.Module()
    module.ln_pre = nn.RMSNorm(32 * 4)
    module.linear_1, module.linear_2 = nn.Linear(32 * 4, 40, bias=False), nn.Linear(20, 64, bias=False)
    if late_norm:
        module.ln_post = nn.RMSNorm(64)
    else:
        module.ln_mid = nn.RMSNorm(20)
    return module


def heard(sound: Any, word: str, encoder: Any, projector: dict[str, Tensor]) -> tuple[str, Tensor]:
    """All windows at once, as long as the longest, with a mask over what is silence."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=16)
    found = extractor(sound, sampling_rate=RATE, padding="longest", pad_to_multiple_of=160, truncation=False)
    frames = torch.as_tensor(np.asarray(found["input_features"][0]))
    lengths = [min(100, frames.shape[1] - start) for start in range(0, frames.shape[1], 100)]
    longest = max(lengths)
    windows = torch.stack([F.pad(part, (0, longest - part.shape[1])) for part in frames.split(100, dim=1)])
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(windows)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    is_heard = torch.arange(x.shape[1]) < torch.tensor([[(length - 1) // 2 + 1] for length in lengths])
    mask = torch.where(is_heard, 0.0, torch.finfo(torch.float32).min)[:, None, None].expand(-1, 1, x.shape[1], -1)
    for layer in encoder.layers:
        x = layer(x, mask)
    x = encoder.layer_norm(x)
    x = F.pad(x, (0, 0, 0, -x.shape[1] % 4)).unflatten(1, (-1, 4)).flatten(2)
    x = F.rms_norm(x, (128,), projector["ln_pre.weight"], 1e-6) @ projector["linear_1.weight"].T
    x = x[..., :20] * F.silu(x[..., 20:])
    if "ln_mid.weight" in projector:
        x = F.rms_norm(x, (20,), projector["ln_mid.weight"], 1e-6)
    x = x @ projector["linear_2.weight"].T
    if "ln_post.weight" in projector:
        x = F.rms_norm(x, (64,), projector["ln_post.weight"], 1e-6)
    x = torch.cat([each[: -(-length // 8)] for each, length in zip(x, lengths, strict=True)])
    return word * len(x), x


@pytest.mark.parametrize(("late_norm", "apart"), [(False, False), (True, True)])
def test_ultravox_hears(late_norm: bool, apart: bool, tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    model = ultravox(tmp_path / "ultravox", tokenizer_folders["byte level"], late_norm=late_norm, apart=apart)
    one, long = wave(9000), wave(32700, 1.2)  # of three windows, the last with an odd number of frames
    asked = [
        (f"Hear: {TEXT} what is it?", [one]),
        (TEXT, [wave(200)]),
        ("The tide came in twice a day", []),
        (f"compare {TEXT} with {TEXT} please", [one, long]),
    ]
    says_the_same(model, asked)


def test_what_ultravox_does_not_take(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    model = ultravox(tmp_path / "ultravox", tokenizer_folders["byte level"])
    with make(model.folder) as llm, pytest.raises(RequestError, match="there are no options, and 'rate' is given"):
        prompt = {"prompt": TEXT, "multi_modal_data": {"audio": (wave(9000), RATE)}}
        llm.generate({**prompt, "mm_processor_kwargs": {"rate": 1}}, GREEDY, use_tqdm=False)
    content = json.loads((model.folder / "config.json").read_text())
    for changes, words in (
        ({"num_projector_layers": 2}, "num_projector_layers=2 is not supported"),
        ({"text_model_id": "a/b", "text_model_lora_config": {"r": 8}}, "adapts a/b; merge"),
        ({"projector_act": "swish2"}, "projector_act='swish2' is not known"),
    ):
        (model.folder / "config.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(ModelError, match=words):
            make(model.folder)
