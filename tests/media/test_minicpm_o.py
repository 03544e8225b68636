"""MiniCPM-o as it was published: MiniCPM-V's eye, and whisper's ear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from tests.media.cases import GREEDY, RATE, check, wave
from tests.media.published import Published, drawn, said, says_the_same
from tests.media.test_minicpm_v import MARK, minicpm_v
from tests.media.test_models import make
from tests.media.tiny import picture
from vllm.errors import ModelError, RequestError

AUDIO = {
    "model_type": "whisper",
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
}
AUDIO |= {"num_mel_bins": 16, "max_source_positions": 100, "decoder_layers": 1, "vocab_size": 60, "pad_token_id": 1}
SOUND = "(<audio>./</audio>)"


def minicpm_o(place: Path, tokenizer_folder: Path) -> tuple[Published, Published]:
    """What sees and what hears, of one checkpoint."""
    seer = minicpm_v(place, tokenizer_folder, "2.6")
    encoder = drawn(WhisperEncoder(transformers.WhisperConfig(**AUDIO)), 0.7)
    project: Any = drawn(nn.ModuleDict({"linear1": nn.Linear(32, 256), "linear2": nn.Linear(256, 256)}), 0.2)
    stored = load_file(place / "model.safetensors")
    stored |= {f"apm.{name}": value for name, value in encoder.state_dict().items()}
    stored |= {f"audio_projection_layer.{name}": value for name, value in project.state_dict().items()}
    stored |= {"tts.projector.weight": torch.zeros(4)}  # of a voice that does not speak here
    save_file({name: value.contiguous().clone() for name, value in stored.items()}, place / "model.safetensors")
    content = json.loads((place / "config.json").read_text())
    content |= {
        "architectures": ["MiniCPMO"],
        "model_type": "minicpmo",
        "audio_config": AUDIO,
        "audio_chunk_length": 1.0,
    }
    (place / "config.json").write_text(json.dumps({**content, "audio_pool_step": 2, "init_audio": True}))
    tokens = (seer.tokenizer.convert_tokens_to_ids("<|audio|>"),)
    hearer = Published(place, seer.tokenizer, seer.text, SOUND, tokens, lambda sound: heard(sound, encoder, project))
    return seer, hearer


def heard(sound: Any, encoder: Any, project: Any) -> tuple[str, Tensor]:
    """All pieces of two seconds at once, as long as the longest."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    pieces = [sound[start : start + 2 * RATE] for start in range(0, len(sound), 2 * RATE)]
    found = extractor(pieces, sampling_rate=RATE, return_attention_mask=True, padding="max_length", return_tensors="pt")
    lengths = found["attention_mask"].sum(1).tolist()
    parts = [frames[:, :length] for frames, length in zip(found["input_features"], lengths, strict=True)]
    frames = torch.stack([F.pad(part, (0, max(lengths) - part.shape[1])) for part in parts])
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(frames)))).transpose(1, 2)
    x = x + encoder.embed_positions.weight[: x.shape[1]]
    second = torch.arange(x.shape[1]) // 50
    is_hidden = (second[None, :] > second[:, None])[None] | (
        torch.arange(x.shape[1]) >= torch.tensor(lengths)[:, None]
    )[:, None]
    mask = torch.zeros(is_hidden.shape).masked_fill(is_hidden, -torch.inf)[:, None]
    for layer in encoder.layers:
        x = layer(x, mask)
    x = project["linear2"](project["linear1"](encoder.layer_norm(x)).relu())
    x = (x[:, 0 : x.shape[1] - 1 : 2] + x[:, 1::2][:, : x.shape[1] // 2]) / 2
    x = torch.cat([each[: (((length - 1) // 2 + 1) - 2) // 2 + 1] for each, length in zip(x, lengths, strict=True)])
    words = "".join(
        f"<|audio_start|>{'<|audio|>' * min(25, len(x) - start)}<|audio_end|>" for start in range(0, len(x), 25)
    )
    return words, x


@pytest.fixture
def models(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> tuple[Published, Published]:
    return minicpm_o(tmp_path / "minicpm_o", tokenizer_folders["byte level"])


def test_minicpm_o_hears(models: tuple[Published, Published]) -> None:
    asked: list[tuple[str, Any]] = [
        (f"Hear: {SOUND} what is it?", [wave(20000)]),
        (SOUND, [wave(9000)]),
        ("The tide came in twice a day", []),
        (f"compare {SOUND} with {SOUND} please", [wave(20000), wave(38000, 1.2)]),
    ]
    says_the_same(models[1], asked)


def test_minicpm_o_sees_and_hears(models: tuple[Published, Published]) -> None:
    seer, hearer = models
    case = seer.case(f"Look: {MARK} what is it?", [picture(70, 30, 1)])
    (words, sounds), (stand_in, seen) = hearer.see(wave(9000)), seer.see(picture(70, 30, 1), 0)
    ids = torch.tensor([seer.ids([f"{words} beside {stand_in}"])])
    embeds = seer.text.get_input_embeddings()(ids).detach()
    embeds[ids == hearer.tokens[0]], embeds[ids == seer.tokens[0]] = sounds, seen
    tokens, _ = said(seer.text, embeds)
    with make(seer.folder) as llm:
        check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
        both: dict[str, Any] = {"image": picture(70, 30, 1), "audio": (wave(9000), RATE)}
        output = llm.generate({"prompt": f"{SOUND} beside {MARK}", "multi_modal_data": both}, GREEDY, use_tqdm=False)[0]
        assert output.prompt_token_ids == ids[0].tolist()
        assert list(output.outputs[0].token_ids) == tokens
        short = {"prompt": SOUND, "multi_modal_data": {"audio": (np.zeros(100, np.float32), RATE)}}
        with pytest.raises(RequestError, match=r"it is too short: 0\.006 s"):
            llm.generate(short, GREEDY, use_tqdm=False)
    content = json.loads((seer.folder / "config.json").read_text())
    (seer.folder / "config.json").write_text(json.dumps({**content, "version": 4.5}))
    with pytest.raises(ModelError, match=r"version=4\.5 of MiniCPM-o is not supported"):
        make(seer.folder)
