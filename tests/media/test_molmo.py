"""Molmo as it was published, before a small clip, with qwen2 and olmo2 for its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tests.media.cases import GREEDY
from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import ModelError, RequestError

SIZE, PATCH, SIDE, LEFT, RIGHT = 64, 8, 8, 2, 2
WINDOW = (SIDE - LEFT - RIGHT) * PATCH
NEW = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>"]
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
CLIP |= {
    "num_hidden_layers": 9,
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}


class Eye(nn.Module):
    """The vision backbone under its published names, with the layer that nobody looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.image_vit: Any = nn.Module()
        self.image_vit.class_embedding = nn.Parameter(torch.zeros(32))
        self.image_vit.positional_embedding = nn.Parameter(torch.zeros(SIDE**2 + 1, 32))
        self.image_vit.patch_embedding = nn.Linear(3 * PATCH**2, 32, bias=False)
        self.image_vit.pre_ln = nn.LayerNorm(32)
        self.image_vit.transformer = nn.Module()
        self.image_vit.transformer.resblocks = nn.ModuleList([Block() for _ in range(10)])
        self.pad_embed = nn.Parameter(torch.zeros(2, 64))
        self.image_pooling_2d = _attention(64, 32)
        self.image_projector: Any = nn.Module()
        self.image_projector.w1, self.image_projector.w3 = nn.Linear(32, 96, bias=False), nn.Linear(32, 96, bias=False)
        self.image_projector.w2 = nn.Linear(96, 64, bias=False)

    def forward(self, crops: Tensor, shares: Tensor) -> Tensor:
        vit = self.image_vit
        x = vit.patch_embedding(crops)
        x = torch.cat([vit.class_embedding.expand(len(x), 1, -1), x], dim=1) + vit.positional_embedding
        x, states = vit.pre_ln(x), []
        for block in vit.transformer.resblocks:
            x = block(x)
            states.append(x)
        x = torch.cat([states[-2], states[-9]], dim=-1)[:, 1:]
        edge = (shares < 1) & (shares != 0)
        x = x + self.pad_embed[0] * (shares == 0)[..., None].float() + self.pad_embed[1] * edge[..., None].float()
        grid = x.unflatten(1, (SIDE, SIDE))
        four = torch.stack([grid[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=3)
        pooled = attended(self.image_pooling_2d, four.mean(dim=3, keepdim=True), four)[..., 0, :]
        project = self.image_projector
        return project.w2(F.silu(project.w1(pooled)) * project.w3(pooled))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = _attention(32, 32)
        self.feed_forward: Any = nn.Module()
        self.feed_forward.w1, self.feed_forward.w2 = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        x = x + attended(self.attention, y, y)
        y = self.feed_forward.w1(self.ffn_norm(x))
        return x + self.feed_forward.w2(y * torch.sigmoid(1.702 * y))


def _attention(width: int, out: int) -> Any:
    module: Any = nn.Module()
    module.wq, module.wk, module.wv = (nn.Linear(width, out) for _ in range(3))
    module.wo = nn.Linear(out, out)
    return module


def attended(module: Any, query: Tensor, known: Tensor) -> Tensor:
    q, k, v = (
        part.unflatten(-1, (2, 16)).transpose(-3, -2) for part in (module.wq(query), module.wk(known), module.wv(known))
    )
    return module.wo(((q @ k.mT / 4).softmax(-1) @ v).transpose(-3, -2).flatten(-2))


def molmo(place: Path, tokenizer_folder: Path, *, olmo: bool) -> Published:
    maker = Maker(tokenizer_folder)
    maker.tokenizer.add_special_tokens({"additional_special_tokens": ["<|endoftext|>"]})
    known = len(maker.tokenizer)
    maker.tokenizer.add_special_tokens({"additional_special_tokens": [word for word in NEW if word != "<|image|>"]})
    maker.use(maker.tokenizer)
    maker.vocab_size = known
    text = text_part(maker, "olmo2" if olmo else "qwen2", max_position_embeddings=2048, rms_norm_eps=1e-5)
    eye, new = drawn(Eye(), 0.5), torch.randn(128, 64, generator=torch.Generator().manual_seed(4)) * 0.3
    eye.image_projector.w2.weight *= 0.2  # to about the size of the text's embeddings
    tower = {f"model.vision_backbone.{name}": value for name, value in eye.state_dict().items()}
    tower |= {"model.transformer.wte.new_embedding": new} | dict(fused(text, olmo))
    config = {
        "architectures": ["MolmoForCausalLM"], "model_type": "molmo", "torch_dtype": "float32", "layer_norm_type": "rms",
        "auto_map": {"AutoConfig": "config_molmo.MolmoConfig"}, "hidden_size": 64, "intermediate_size": 192,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "embedding_size": known, "vocab_size": 500,
        "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048, "clip_qkv": None, "qkv_bias": not olmo,
        "attention_layer_norm": olmo, "norm_after": olmo, "weight_tying": False, "use_position_ids": True,
    }  # fmt: skip
    folder = written(place, maker.tokenizer, config, text, {}, tower)
    said = {
        "base_image_input_size": [SIZE, SIZE],
        "image_patch_size": PATCH,
        "overlap_margins": [LEFT, RIGHT],
        "max_crops": 5,
    }
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**said, "image_token_length_h": 4, "image_token_length_w": 4})
    )

    def see(image: Image.Image) -> tuple[str, Tensor]:
        rows, columns = tiling(image)
        small, _ = fitted(image, SIZE, SIZE)
        pixels, mask = fitted(image, rows * WINDOW + SIZE - WINDOW, columns * WINDOW + SIZE - WINDOW)
        crops = [pixels[y * WINDOW :][:SIZE, x * WINDOW :][:, :SIZE] for y in range(rows) for x in range(columns)]
        masks = [mask[y * WINDOW :][:SIZE, x * WINDOW :][:, :SIZE] for y in range(rows) for x in range(columns)]
        shares = torch.stack([patches(each[..., None]).mean(-1) for each in masks])
        shares = torch.cat([shares, torch.full((1, SIDE**2), -1.0)])  # one off, as published
        seen = eye(torch.stack([patches(crop) for crop in (small, *crops)]), shares)
        grids = seen[1:].view(rows, columns, SIDE // 2, SIDE // 2, -1)
        lines = [
            torch.cat([cell(grids[y, x], y, rows, x, columns) for x in range(columns)], dim=1) for y in range(rows)
        ]
        return marked(maker, new, known, seen[0], torch.cat(lines))

    return Published(
        folder,
        maker.tokenizer,
        text,
        "<|image|>",
        tuple(maker.id(word) for word in ("<im_patch>", "<im_start>", "<im_end>", "<im_col>")),
        see,
    )


def cell(grid: Tensor, y: int, rows: int, x: int, columns: int) -> Tensor:
    """What of a crop no other crop shows."""
    grid = grid[LEFT // 2 if y else 0 : SIDE // 2 - (RIGHT // 2 if y < rows - 1 else 0)]
    return grid[:, LEFT // 2 if x else 0 : SIDE // 2 - (RIGHT // 2 if x < columns - 1 else 0)]


def marked(maker: Maker, new: Tensor, known: int, *grids: Tensor) -> tuple[str, Tensor]:
    """The text of grids and all its embeddings, of which those of patches are sums."""
    words = "".join(f"<im_start>{('<im_patch>' * g.shape[1] + '<im_col>') * len(g)}<im_end>" for g in grids)
    ids = maker.tokenizer(words, return_tensors="pt")["input_ids"][0]
    found = new[ids - known]
    found[ids == maker.id("<im_patch>")] += torch.cat([grid.flatten(0, 1) for grid in grids])
    return words, found


def fused(text: Any, olmo: bool) -> Any:
    """A text part's tensors under their published names."""
    state = text.state_dict()
    yield "model.transformer.wte.embedding", state["model.embed_tokens.weight"]
    yield "model.transformer.ln_f.weight", state["model.norm.weight"]
    yield "model.transformer.ff_out.weight", state["lm_head.weight"]
    first, second = (
        ("post_attention_layernorm", "post_feedforward_layernorm")
        if olmo
        else ("input_layernorm", "post_attention_layernorm")
    )
    for index in range(2):
        ours, theirs = f"model.transformer.blocks.{index}", f"model.layers.{index}"
        for kind in ("weight",) if olmo else ("weight", "bias"):
            yield (
                f"{ours}.att_proj.{kind}",
                torch.cat([state[f"{theirs}.self_attn.{part}_proj.{kind}"] for part in "qkv"]),
            )
        if olmo:
            yield from (
                (f"{ours}.{part}_norm.weight", state[f"{theirs}.self_attn.{part}_norm.weight"]) for part in "qk"
            )
        yield f"{ours}.attn_out.weight", state[f"{theirs}.self_attn.o_proj.weight"]
        yield (
            f"{ours}.ff_proj.weight",
            torch.cat([state[f"{theirs}.mlp.{part}_proj.weight"] for part in ("up", "gate")]),
        )
        yield f"{ours}.ff_out.weight", state[f"{theirs}.mlp.down_proj.weight"]
        yield from (
            (f"{ours}.{norm}.weight", state[f"{theirs}.{one}.weight"])
            for norm, one in (("attn_norm", first), ("ff_norm", second))
        )


def tiling(image: Image.Image) -> tuple[int, int]:
    """Of at most five crops, written out."""
    best, fit = (1, 1), None
    for rows, columns in sorted(
        ((y, x) for y in range(1, 6) for x in range(1, 6) if y * x <= 5), key=lambda g: (g[0] * g[1], g[0])
    ):
        margin = SIZE - WINDOW
        scale = min(rows * WINDOW / (image.height - margin), columns * WINDOW / (image.width - margin))
        better = fit is None or (scale > fit if fit < 1 else 1 <= scale < fit)
        if better:
            best, fit = (rows, columns), scale
    return best


def fitted(image: Image.Image, height: int, width: int) -> tuple[Tensor, Tensor]:
    scale = min(height / image.height, width / image.width)
    high, wide = int(np.float32(image.height) * np.float32(scale)), int(np.float32(image.width) * np.float32(scale))
    pixels = (torch.tensor(np.array(image)) / 255).permute(2, 0, 1)
    small = F.interpolate(pixels[None], (high, wide), mode="bilinear", antialias=True)[0].clip(0, 1)
    top, left = (height - high) // 2, (width - wide) // 2
    pad = (left, width - wide - left, top, height - high - top)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return (F.pad(small, pad).permute(1, 2, 0) - mean) / std, F.pad(torch.ones(high, wide), pad)


def patches(pixels: Tensor) -> Tensor:
    """Rows of patches, pixel by pixel.  [S, S, C] -> [n, P · P · C]"""
    parts = pixels.unflatten(0, (SIDE, PATCH)).unflatten(2, (SIDE, PATCH))
    return parts.transpose(1, 2).flatten(0, 1).flatten(1)


@pytest.mark.parametrize("olmo", [False, True])
def test_molmo_as_it_was_published(
    olmo: bool, tmp_path: Path, tokenizer_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm.loader.published.molmo.CLIP", CLIP)
    model = molmo(tmp_path / "molmo", tokenizer_folders["byte level"], olmo=olmo)
    asked: list[tuple[str, Any]] = [
        ("<|endoftext|><|image|> User: what is it? Assistant:", [picture(150, 70, 1)]),
        ("<|endoftext|><|image|>", [picture(66, 99, 2)]),
        ("The tide came in twice a day", []),
        ("<|endoftext|><|image|><|image|> compare them please", [picture(150, 70, 1), picture(40, 64, 3)]),
    ]
    says_the_same(model, asked, chat_begins="<|endoftext|><|image|>user: ")
    one = model.case("<|endoftext|><|image|> and what is that?", [picture(66, 99, 2)])
    with make(model.folder) as llm:
        for text in (" and what is that?", " and <|image|>\nwhat is that?"):  # they come first, whatever is said
            prompt: dict[str, Any] = {"prompt": text, "multi_modal_data": {"image": picture(66, 99, 2)}}
            assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].prompt_token_ids == one.ids
        fewer = {**prompt, "mm_processor_kwargs": {"max_crops": 1}}
        ids = llm.generate(fewer, GREEDY, use_tqdm=False)[0].prompt_token_ids
        assert ids.count(model.tokens[0]) == 2 * 16
        with pytest.raises(RequestError, match="'crops'; it takes max_crops"):
            llm.generate({**prompt, "mm_processor_kwargs": {"crops": 1}}, GREEDY, use_tqdm=False)
        with pytest.raises(RequestError, match="give one placeholder for each"):
            llm.generate({**prompt, "prompt": "<|image|><|image|>"}, GREEDY, use_tqdm=False)
    content = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps({**content, "clip_qkv": 8.0}))
    with pytest.raises(ModelError, match="clip_qkv=8.0 is not supported"):
        make(model.folder)
