"""InternVL's kin: H2OVL, which cuts a picture at two scales, and NVLM-D, which numbers its tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.tiny import Maker, picture

SIZE, PATCH = 32, 8
VISION: dict[str, Any] = {"model_type": "intern_vit_6b", "image_size": SIZE, "patch_size": PATCH, "hidden_size": 48}
VISION |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 3, "norm_type": "rms_norm"}
VISION |= {"qk_normalization": True, "qkv_bias": False, "hidden_act": "gelu", "layer_norm_eps": 1e-6}
SPLIT = {"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
ASKED = [
    ("Look: <image> what is it?", [picture(70, 30, 1)]),
    ("<image>", [picture(64, 48, 2)]),
    ("The tide came in twice a day", []),
    ("compare <image> with <image> please", [picture(70, 30, 1), picture(32, 65, 3)]),
]


class Encoder(nn.Module):
    """InternViT under its published names."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: Any = nn.Module()
        self.embeddings.class_embedding = nn.Parameter(torch.zeros(1, 1, 48))
        self.embeddings.position_embedding = nn.Parameter(torch.zeros(1, 17, 48))
        self.embeddings.patch_embedding = nn.Conv2d(3, 48, PATCH, PATCH)
        self.encoder: Any = nn.Module()
        self.encoder.layers = nn.ModuleList([Block(), Block()])

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embeddings.patch_embedding(pixels).flatten(2).mT
        x = torch.cat([self.embeddings.class_embedding.expand(len(x), -1, -1), x], dim=1)
        x = x + self.embeddings.position_embedding
        for layer in self.encoder.layers:
            x = layer(x)
        return x[:, 1:]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(48, 1e-6), nn.RMSNorm(48, 1e-6)
        self.ls1, self.ls2 = nn.Parameter(torch.zeros(48)), nn.Parameter(torch.zeros(48))
        self.attn: Any = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(48, 144, bias=False), nn.Linear(48, 48)
        self.attn.q_norm, self.attn.k_norm = nn.RMSNorm(48, 1e-6), nn.RMSNorm(48, 1e-6)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(48, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (3, 16)).transpose(1, 2) for part in (self.attn.q_norm(q), self.attn.k_norm(k), v)]
        seen = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + self.ls1 * self.attn.proj(seen)
        return x + self.ls2 * self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


def joined(x: Tensor) -> Tensor:
    """Squares of four patches side by side.  [N, 16, E] -> [N, 4, 4 E]"""
    grid = x.unflatten(1, (4, 4))
    return torch.cat([grid[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1).flatten(1, 2)


def tiles_of(
    image: Image.Image, least: int, most: int, not_as: tuple[int, int] = (0, 0)
) -> tuple[list[Any], tuple[int, int]]:
    """Tiles of the grid that is most like a picture, written out, and that grid."""
    width, height = image.size
    best, old = (1, 1), float("inf")
    for area in range(least, most + 1):
        for columns in range(1, area + 1):
            rows, rest = divmod(area, columns)
            if rest or (not_as[0] and not (not_as[0] % columns and not_as[1] % rows)):
                continue
            new = abs(width / height - columns / rows)
            if new < old or (new == old and width * height > 0.5 * SIZE**2 * area):
                best, old = (columns, rows), new
    large = image.resize((best[0] * SIZE, best[1] * SIZE), Image.Resampling.BICUBIC)
    boxes = [(x * SIZE, y * SIZE, (x + 1) * SIZE, (y + 1) * SIZE) for y in range(best[1]) for x in range(best[0])]
    return [large.crop(box) for box in boxes], best


def pixels_of(tiles: list[Any]) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return torch.stack([((torch.tensor(np.array(tile)) / 255.0 - mean) / std).permute(2, 0, 1) for tile in tiles])


def config_of(architecture: str, model_type: str, text: Any, **changes: Any) -> dict[str, Any]:
    return {
        "architectures": [architecture], "model_type": model_type, "torch_dtype": "float32", "vision_config": VISION,
        "auto_map": {"AutoConfig": f"configuration_{model_type}.Config"}, "llm_config": text.config.to_dict() | changes.pop("llm"),
        "force_image_size": SIZE, "downsample_ratio": 0.5, "select_layer": -1, "ps_version": "v2", "use_thumbnail": True,
        "dynamic_image_size": True, "max_dynamic_patch": 6, **changes,
    }  # fmt: skip


def with_thumbnail(image: Image.Image, tiles: list[Any]) -> list[Any]:
    return [*tiles, image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)] if len(tiles) > 1 else tiles


def at_two_scales(image: Image.Image) -> list[Any]:
    first, grid = tiles_of(image, 1, 6)
    second, _ = tiles_of(image, 3, 6, grid)
    first, second = with_thumbnail(image, first), with_thumbnail(image, second)
    return [*second[:-1], *first[:-1], *second[-1:]]


def test_h2ovl_as_it_was_published(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    maker = Maker(tokenizer_folders["byte level"])
    text = text_part(maker, "mistral", sliding_window=None)
    eye, mlp = (
        drawn(Encoder()),
        drawn(nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 64), nn.GELU(), nn.Linear(64, 64))),
    )
    tower = {f"vision_model.{name}": tensor for name, tensor in eye.state_dict().items()}
    tower |= {f"mlp1.{name}": tensor for name, tensor in mlp.state_dict().items()}
    llm = {"architectures": ["MistralForCausalLM"]}
    config = config_of("H2OVLChatModel", "h2ovl_chat", text, llm=llm, use_msac=True)
    folder = written(tmp_path / "h2ovl", maker.tokenizer, config, text, SPLIT, tower)

    def see(image: Any, cut: Any = at_two_scales) -> tuple[str, Tensor]:
        tiles = cut(image)
        return f"<img>{'<IMG_CONTEXT>' * 4 * len(tiles)}</img>", mlp(joined(eye(pixels_of(tiles)))).flatten(0, 1)

    def see_several(image: Any) -> tuple[str, Tensor]:
        return see(image, lambda image: with_thumbnail(image, tiles_of(image, 1, 6)[0]))

    model = Published(folder, maker.tokenizer, text, "<image>", (maker.id("<IMG_CONTEXT>"),), see, see_several)
    assert [len(at_two_scales(picture(*size))) for size in ((64, 32), (32, 32), (96, 32), (70, 30))] == [9, 5, 8, 9]
    says_the_same(model, ASKED)


def test_nvlm_d_as_it_was_published(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    maker = Maker(tokenizer_folders["byte level"])
    maker.tokenizer.add_special_tokens({"additional_special_tokens": ["<|vision_pad|>"]})
    maker.use(maker.tokenizer)
    text = text_part(maker, "qwen2")
    eye = drawn(Encoder())
    mlp = drawn(
        nn.Sequential(nn.LayerNorm(192), nn.Linear(192, 96, bias=False), nn.GELU(), nn.Linear(96, 64, bias=False))
    )
    tower = {f"vision_model.{name}": tensor for name, tensor in eye.state_dict().items()}
    tower |= {f"mlp1.{name}": tensor for name, tensor in mlp.state_dict().items()}
    config = config_of("NVLM_D", "NVLM_D", text, llm={"architectures": ["Qwen2ForCausalLM"]})
    folder = written(tmp_path / "nvlm", maker.tokenizer, config, text, SPLIT, tower)

    def see(image: Any) -> tuple[str, Tensor]:
        tiles = with_thumbnail(image, tiles_of(image, 1, 6)[0])
        names = [f"<tile_{number + 1}>" for number in range(len(tiles) - 1)] + ["<tile_global_thumbnail>"]
        stand_in = "".join(name + "<|vision_pad|>" * 4 for name in names)
        return f"<Image>{stand_in}</Image>", mlp(joined(eye(pixels_of(tiles)))).flatten(0, 1)

    says_the_same(Published(folder, maker.tokenizer, text, "<image>", (maker.id("<|vision_pad|>"),), see), ASKED)
