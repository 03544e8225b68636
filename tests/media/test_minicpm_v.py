"""MiniCPM-V as it was published, in its versions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.media.cases import GREEDY
from tests.media.published import Published, drawn, says_the_same, scaled, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import ModelError, RequestError

MARK = "(<image>./</image>)"
SIZE, PATCH, SIDE = 32, 8, 5
VISION = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "patch_size": PATCH,
}
VISION |= {"image_size": PATCH * SIDE, "model_type": "siglip"}
WORDS = ["<unk>", "<slice>", "</slice>", "<image_id>", "</image_id>", "</image>", "<|audio_start|>", "<|audio_end|>"]
TEXTS = {"2.5": "llama", "2.6": "qwen2", "4.0": "llama", "4.5": "qwen3"}


def minicpm_v(place: Path, tokenizer_folder: Path, version: str) -> Published:
    maker = Maker(tokenizer_folder)
    maker.tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
    maker.use(maker.tokenizer)
    text = scaled(text_part(maker, TEXTS[version], hidden_size=256, num_attention_heads=4, head_dim=64), 0.3)
    siglip = transformers.SiglipVisionConfig(
        **{**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
    )
    if is_first := version == "2.5":
        siglip.num_hidden_layers = 2  # the last is dropped
    eye, resampler = drawn(transformers.SiglipVisionModel(siglip), 0.5), drawn(_resampler(), 0.5)
    resampler.proj *= 0.1  # to about the size of the text's embeddings
    tower = {f"vpm.{name}": value for name, value in eye.state_dict().items()}
    tower |= {f"resampler.{name}": value for name, value in resampler.state_dict().items()}
    config = {
        **text.config.to_dict(), "architectures": ["MiniCPMV"], "model_type": "minicpmv", "vision_config": VISION,
        "auto_map": {"AutoConfig": "configuration_minicpm.MiniCPMVConfig"}, "query_num": 4, "torch_dtype": "float32",
        "drop_vision_last_layer": is_first, "slice_config": {"max_slice_nums": 6, "patch_size": PATCH},
    }  # fmt: skip
    config |= {} if is_first else {"version": float(version)}
    folder = written(place, maker.tokenizer, config, text, {"model.": "llm.model.", "lm_head.": "llm.lm_head."}, tower)
    said = {"max_slice_nums": 6, "scale_resolution": SIZE, "patch_size": PATCH, "image_feature_size": 4}
    told = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "MiniCPMVTokenizerFast"}
    told["auto_map"] = {"AutoTokenizer": ["tokenization_minicpmv.MiniCPMVTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(json.dumps({**said, "use_image_id": not is_first}))

    def see(image: Any, number: int) -> tuple[str, Tensor]:
        parts, grid = sliced(image)
        sizes = [(part.shape[1] // PATCH, part.shape[2] // PATCH) for part in parts]
        seen = in_rows(eye, parts) if is_first else [looked(eye, part) for part in parts]
        found = [resampled(resampler, x, *size, version == "4.5") for x, size in zip(seen, sizes, strict=True)]
        return stand_in(grid, number, is_first), torch.cat(found)

    return Published(folder, maker.tokenizer, text, MARK, (maker.id("<unk>"),), see, counts=True)


def _resampler() -> Any:
    module: Any = nn.Module()
    module.query, module.proj = nn.Parameter(torch.zeros(4, 256)), nn.Parameter(torch.zeros(256, 256))
    module.kv_proj, module.attn = nn.Linear(48, 256, bias=False), nn.MultiheadAttention(256, 2)
    module.ln_q, module.ln_kv, module.ln_post = (nn.LayerNorm(256, eps=1e-6) for _ in range(3))
    return module


def stand_in(grid: tuple[int, int], number: int, is_first: bool) -> str:
    one = "<unk>" * 4
    if is_first:
        rows = "\n".join([f"<image>{one}</image>" * grid[0]] * grid[1])
        return f"<image>{one}</image>" + (f"<slice>{rows}</slice>" if grid != (1, 1) else "")
    rows = "\n".join([f"<slice>{one}</slice>" * grid[0]] * grid[1]) if grid != (1, 1) else ""
    return f"<image_id>{number}</image_id><image>{one}</image>{rows}"


def near(length: float, unit: int) -> int:
    return max(round(length / unit) * unit, unit)


def fitted(width: float, height: float) -> tuple[int, int]:
    ratio = width / height
    tall = int(SIZE / math.sqrt(ratio))
    return near(int(tall * ratio), PATCH), near(tall, PATCH)


def sliced(image: Image.Image) -> tuple[list[Tensor], tuple[int, int]]:
    """A picture and its slices, at most six, written out."""
    width, height = image.size
    count, grid = min(math.ceil(width * height / SIZE**2), 6), (1, 1)
    parts = [image.resize(fitted(width, height), Image.Resampling.BICUBIC)]
    if count > 1:
        best = math.inf
        for near_count in (count - 1, count, count + 1):
            for columns in range(1, near_count + 1):
                if near_count in (1, 7) or near_count % columns:
                    continue
                error = abs(math.log(width / height) - math.log(columns**2 / near_count))
                if error < best - 1e-12:
                    best, grid = error, (columns, near_count // columns)
        wide, tall = fitted(near(width, grid[0]) / grid[0], near(height, grid[1]) / grid[1])
        large = image.resize((wide * grid[0], tall * grid[1]), Image.Resampling.BICUBIC)
        for y in range(grid[1]):
            for x in range(grid[0]):
                parts.append(large.crop((x * wide, y * tall, (x + 1) * wide, (y + 1) * tall)))
    return [(torch.tensor(np.array(part)) / 127.5 - 1).permute(2, 0, 1) for part in parts], grid


def positions(count: int) -> list[int]:
    """Where so many patches lie among those of the square; no edge is between two of them but by a rounding."""
    return [min(int(index / count * SIDE + 1e-6), SIDE - 1) for index in range(count)]


def encoded(eye: Any, x: Tensor) -> Tensor:
    for layer in eye.encoder.layers:
        x = layer(x, None)
    return eye.post_layernorm(x)


def looked(eye: Any, pixels: Tensor) -> Tensor:
    x = eye.embeddings.patch_embedding(pixels[None])
    grid = [[row * SIDE + column for column in positions(x.shape[3])] for row in positions(x.shape[2])]
    x = x.flatten(2).mT + eye.embeddings.position_embedding(torch.tensor(grid).flatten())
    return encoded(eye, x)[0]


def in_rows(eye: Any, parts: list[Tensor]) -> list[Tensor]:
    counts = [part.shape[1] * part.shape[2] // PATCH**2 for part in parts]
    patches = [F.unfold(part[None], PATCH, stride=PATCH)[0].mT for part in parts]
    strips = [patch.view(-1, 3, PATCH, PATCH).permute(1, 2, 0, 3).flatten(2) for patch in patches]
    strips = [F.pad(strip, (0, max(counts) * PATCH - strip.shape[2])) for strip in strips]
    x = eye.embeddings.patch_embedding(torch.stack(strips)).flatten(2).mT
    x = encoded(eye, x + eye.embeddings.position_embedding(torch.tensor(positions(max(counts)))))
    return [each[:count] for each, count in zip(x, counts, strict=True)]


def resampled(module: Any, x: Tensor, rows: int, columns: int, on_values: bool) -> Tensor:
    rates = [10000 ** (-index / 64) for index in range(64)]
    waves = [
        [*(math.sin(c * w) for w in rates), *(math.cos(c * w) for w in rates),
         *(math.sin(r * w) for w in rates), *(math.cos(r * w) for w in rates)]
        for r in range(rows)
        for c in range(columns)
    ]  # fmt: skip
    x = module.ln_kv(module.kv_proj(x))
    known = x + torch.tensor(waves)
    key, value = (x, known) if on_values else (known, x)
    seen = module.attn(module.ln_q(module.query), key, value)[0]
    return module.ln_post(seen) @ module.proj


@pytest.mark.parametrize("version", TEXTS)
def test_minicpm_v_as_it_was_published(version: str, tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    model = minicpm_v(tmp_path / "minicpm_v", tokenizer_folders["byte level"], version)
    asked: list[tuple[str, Any]] = [
        (f"Look: {MARK} what is it?", [picture(70, 30, 1)]),
        (MARK, [picture(20, 33, 2)]),
        ("The tide came in twice a day", []),
        (f"compare {MARK} with {MARK} please", [picture(70, 30, 1), picture(45, 90, 3)]),
    ]
    says_the_same(model, asked)


def test_what_minicpm_v_takes(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    model = minicpm_v(tmp_path / "minicpm_v", tokenizer_folders["byte level"], "2.6")
    prompt: dict[str, Any] = {"prompt": MARK, "multi_modal_data": {"image": picture(70, 30, 1)}}
    with make(model.folder) as llm:
        fewer = {**prompt, "mm_processor_kwargs": {"max_slice_nums": 1, "use_image_id": False}}
        ids = llm.generate(fewer, GREEDY, use_tqdm=False)[0].prompt_token_ids
        assert model.tokenizer.decode(ids) == "<image><unk><unk><unk><unk></image>"
        with pytest.raises(RequestError, match="'slices'; it takes max_slice_nums, use_image_id"):
            llm.generate({**prompt, "mm_processor_kwargs": {"slices": 1}}, GREEDY, use_tqdm=False)
    content = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps({**content, "version": 3}))
    with pytest.raises(ModelError, match=r"version=3\.0 of MiniCPM-V is not supported"):
        make(model.folder)
