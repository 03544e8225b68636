"""DeepSeek-VL2 as it was published, with latent attention and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from tests.media.cases import GREEDY
from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import ModelError, RequestError

SIZE, PATCH, SIDE = 40, 8, 3  # five patches in a row, of which the last is joined with none
SIZES = [[40, 40], [40, 80], [80, 40], [120, 40], [80, 80]]
SPLIT = {"model.": "language.model.", "lm_head.": "language.lm_head."}
BOS = "<|im_start|>"
ADDED = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<|User|>", "<|Assistant|>"]
LATENT: dict[str, Any] = {
    "kv_lora_rank": 24, "q_lora_rank": None, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "head_dim": 8,
    "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_key_value_heads": 4,
}  # fmt: skip


class Eye(nn.Module):
    """A vision transformer under the names of timm's."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, 32, PATCH, PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, 25, 32))
        self.blocks = nn.Sequential(Block(), Block())
        self.norm = nn.LayerNorm(32, eps=1e-6)
        self.attn_pool = nn.Linear(32, 4)  # of a head that is not used

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.blocks(self.patch_embed.proj(pixels).flatten(2).mT + self.pos_embed))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
        self.attn: Any = nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (2, 16)).transpose(1, 2) for part in self.attn.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        weights = (q @ k.mT / 4).softmax(-1)
        x = x + self.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp.fc2(nn.functional.gelu(self.mlp.fc1(self.norm2(x)), approximate="tanh"))


def deepseek_vl_v2(place: Path, tokenizer_folder: Path, *, latent: bool = True, position: str = "head") -> Published:
    maker = Maker(tokenizer_folder)
    maker.use(transformers.AutoTokenizer.from_pretrained(tokenizer_folder))
    maker.tokenizer.bos_token = BOS
    maker.tokenizer.save_pretrained(place)  # without the words that the model's own processor adds
    maker.tokenizer.add_special_tokens({"additional_special_tokens": ADDED})
    maker.use(maker.tokenizer)
    text = text_part(maker, "deepseek_v2", **LATENT) if latent else text_part(maker, "llama")
    said = text.config.to_dict() | {"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2"}
    if not latent:  # all of its layers are dense
        said |= {
            "use_mla": False,
            "kv_lora_rank": None,
            "q_lora_rank": None,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        }
        said |= {"moe_intermediate_size": 32, "first_k_dense_replace": 2, "n_shared_experts": 1}
    eye, project = drawn(Eye()), drawn(nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 64)))
    ends = drawn(nn.ParameterDict({"image_newline": torch.zeros(64), "view_seperator": torch.zeros(64)}))
    tower = {f"vision.{name}": value for name, value in eye.state_dict().items()}
    tower |= {f"projector.layers.{name}": value for name, value in project.state_dict().items()} | ends.state_dict()
    tower |= {f"language.{name}": value for name, value in apart(text)}
    config = {
        "architectures": ["DeepseekVLV2ForCausalLM"], "model_type": "deepseek_vl_v2", "language_config": said,
        "auto_map": {"AutoConfig": "modeling_deepseek_vl_v2.DeepseekVLV2Config"}, "candidate_resolutions": SIZES,
        "global_view_pos": position, "tile_tag": "2D", "torch_dtype": "float32",
        "projector_config": {"input_dim": 32, "n_embed": 64, "model_type": "mlp_projector"},
        "vision_config": {"model_type": "vision", "width": 32, "layers": 2, "heads": 2, "mlp_ratio": 1.51, "patch_size": PATCH,
                          "image_size": SIZE},
    }  # fmt: skip
    folder = written(place, None, config, text, {}, tower)

    def see(image: Image.Image, sizes: Any = SIZES) -> tuple[str, Tensor]:
        width, height = best(image, sizes)
        large = on_grey(image, width, height)
        boxes = [(x, y, x + SIZE, y + SIZE) for y in range(0, height, SIZE) for x in range(0, width, SIZE)]
        squares = [on_grey(image, SIZE, SIZE), *(large.crop(box) for box in boxes)]
        pixels = torch.stack([(torch.tensor(np.array(square)) / 127.5 - 1).permute(2, 0, 1) for square in squares])
        seen = nn.functional.pad(eye(pixels).unflatten(1, (5, 5)), (0, 0, 0, 1, 0, 1))
        four = torch.stack([seen[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1).flatten(3)
        grids = project(four)
        columns, rows = width // SIZE, height // SIZE
        whole = torch.cat([torch.cat(list(grids[1 + y * columns :][:columns]), dim=1) for y in range(rows)])
        parts = [
            ended(grids[0], ends["image_newline"]),
            ends["view_seperator"][None],
            ended(whole, ends["image_newline"]),
        ]
        found = torch.cat(parts if position == "head" else parts[::-1])
        return "<image>" * len(found), found

    return Published(folder, maker.tokenizer, text, "<image>", (maker.id("<image>"),), see)


def apart(text: Any) -> Iterator[tuple[str, Tensor]]:
    """Its experts have matrices of their own."""
    for name, tensor in text.state_dict().items():
        if name.endswith("experts.gate_up_proj"):
            for index, expert in enumerate(tensor):
                for part, half in zip(("gate", "up"), expert.chunk(2), strict=True):
                    yield name.replace("gate_up_proj", f"{index}.{part}_proj.weight"), half
        elif name.endswith("experts.down_proj"):
            yield from ((name.replace("down_proj", f"{i}.down_proj.weight"), each) for i, each in enumerate(tensor))
        else:
            yield name, tensor


def best(image: Image.Image, sizes: Any) -> tuple[int, int]:
    """The size that keeps most pixels, and of such the smallest, written out."""
    found, most, least = (0, 0), 0, 0
    for width, height in sizes:
        scale = min(width / image.width, height / image.height)
        kept = min(int(image.width * scale) * int(image.height * scale), image.width * image.height)
        if kept > most or (kept == most and width * height - kept < least):
            found, most, least = (width, height), kept, width * height - kept
    return found


def on_grey(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.width / image.height > width / height:
        size = (width, round(image.height / image.width * width))
    else:
        size = (round(image.width / image.height * height), height)
    whole = Image.new("RGB", (width, height), (127, 127, 127))
    whole.paste(
        image.resize(size, Image.Resampling.BICUBIC), (round((width - size[0]) / 2), round((height - size[1]) / 2))
    )
    return whole


def ended(grid: Tensor, end: Tensor) -> Tensor:
    return torch.cat([grid, end.expand(len(grid), 1, -1)], dim=1).flatten(0, 1)


ASKED: list[tuple[str, Any]] = [
    (f"{BOS}<|User|>: Look: <image> what is it?\n\n<|Assistant|>:", [picture(90, 30, 1)]),
    (f"{BOS}<image>", [picture(38, 72, 2)]),
    ("The tide came in twice a day", []),
    (f"{BOS}compare <image> with <image> please", [picture(90, 30, 1), picture(78, 78, 3)]),
]


@pytest.mark.parametrize(("latent", "position"), [(True, "head"), (False, "tail")])
def test_deepseek_vl2_as_it_was_published(
    latent: bool, position: str, tmp_path: Path, tokenizer_folders: dict[str, Path]
) -> None:
    model = deepseek_vl_v2(tmp_path / "model", tokenizer_folders["byte level"], latent=latent, position=position)
    says_the_same(model, ASKED, chat_begins=f"{BOS}user: <image>\n")


def test_what_deepseek_vl2_takes(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    model = deepseek_vl_v2(tmp_path / "model", tokenizer_folders["byte level"])
    three: dict[str, Any] = {"prompt": "<image>" * 3, "multi_modal_data": {"image": [picture(90, 30, 1)] * 3}}
    small, large = 12 + 1 + 12, 12 + 1 + 3 * 10
    with make(model.folder) as llm:
        ids = llm.generate(three, GREEDY, use_tqdm=False)[0].prompt_token_ids
        assert len(ids) == 1 + 3 * small
        whole = {**three, "mm_processor_kwargs": {"cropping": True}}
        assert len(llm.generate(whole, GREEDY, use_tqdm=False)[0].prompt_token_ids) == 1 + 3 * large
        with pytest.raises(RequestError, match="'crop'; it takes cropping"):
            llm.generate({**three, "mm_processor_kwargs": {"crop": 1}}, GREEDY, use_tqdm=False)
    content = json.loads((model.folder / "config.json").read_text())
    (model.folder / "config.json").write_text(json.dumps({**content, "tile_tag": "1D"}))
    with pytest.raises(ModelError, match="tile_tag='1D' is not supported"):
        make(model.folder)
