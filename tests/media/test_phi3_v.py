"""Phi-3-V as it was published, before a small clip."""

from __future__ import annotations

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
from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import RequestError

SIZE = 32
CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
CLIP |= {"num_hidden_layers": 3, "image_size": SIZE, "patch_size": 8, "hidden_act": "quick_gelu"}
ROPE = {
    "rope_type": "longrope",
    "long_factor": [1.0 + index / 8 for index in range(8)],
    "short_factor": [1.0 + index / 20 for index in range(8)],
}


@pytest.fixture
def model(tmp_path: Path, tokenizer_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Published:
    monkeypatch.setattr("vllm.loader.published.phi3_v.CLIP", CLIP)
    maker = Maker(tokenizer_folders["sentencepiece"])  # with a token that begins each piece of text
    text = text_part(
        maker, "phi3", rope_scaling=ROPE, max_position_embeddings=4096, original_max_position_embeddings=2048
    )
    clip = drawn(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP)))
    project = drawn(nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 64)))
    ends = drawn(nn.ParameterDict({"sub_GN": torch.zeros(1, 1, 1, 128), "glb_GN": torch.zeros(1, 1, 128)}))
    begin = "model.vision_embed_tokens"
    tower = {f"{begin}.img_processor.vision_model.{name}": value for name, value in clip.state_dict().items()}
    tower |= {f"{begin}.img_projection.{name}": value for name, value in project.state_dict().items()}
    tower |= {f"{begin}.{name}": value for name, value in ends.state_dict().items()}
    config = {
        **text.config.to_dict(), "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v", "torch_dtype": "float32",
        "auto_map": {"AutoConfig": "configuration_phi3_v.Phi3VConfig"}, "rope_scaling": {"type": "su", **ROPE},
        "embd_layer": {"embedding_cls": "image", "hd_transform_order": "sub_glb", "projection_cls": "mlp",
                       "use_hd_transform": True, "with_learnable_separator": True},
        "img_processor": {"image_dim_out": 32, "name": "clip_vision_model", "num_img_tokens": 4, "layer_idx": -2},
    }  # fmt: skip
    config.pop("rope_parameters")
    config["rope_scaling"].pop("rope_type")
    folder = written(tmp_path / "phi3_v", maker.tokenizer, config, text, {"": ""}, tower)
    (folder / "preprocessor_config.json").write_text('{"num_crops": 4, "image_processor_type": "Phi3VImageProcessor"}')

    def see(image: Image.Image) -> tuple[str, Tensor]:
        pixels, rows, columns = enlarged(image)
        small = F.interpolate(pixels[None], size=(SIZE, SIZE), mode="bicubic")
        squares = [pixels[:, y * SIZE :, x * SIZE :][:, :SIZE, :SIZE] for y in range(rows) for x in range(columns)]
        seen = clip(torch.cat([small, torch.stack(squares)]), output_hidden_states=True).hidden_states[-2][:, 1:]
        grids = seen.unflatten(1, (4, 4))
        whole = torch.cat([torch.cat(list(grids[1 + y * columns :][:columns]), dim=1) for y in range(rows)])
        found = torch.cat([ended(whole, ends["sub_GN"]), ends["glb_GN"][0], ended(grids[0], ends["sub_GN"])])
        return "<|image|>" * len(found), project(found)

    return Published(folder, maker.tokenizer, text, "<|image|>", (maker.id("<|image|>"),), see, is_apart=True)


def enlarged(image: Image.Image) -> tuple[Tensor, int, int]:
    """A picture of at most four squares on white, written out for wide ones and high ones."""
    width, height = image.size
    long, short = max(width, height), min(width, height)
    count = max(n for n in range(1, 5) if n * int(np.ceil(n / (long / short))) <= 4)
    new = int(count * SIZE / (long / short))
    pad = -new % SIZE
    before = pad // 2
    if width >= height:
        small = np.array(image.resize((count * SIZE, new), Image.Resampling.BILINEAR))
        whole = np.pad(small, ((before, pad - before), (0, 0), (0, 0)), constant_values=255)
    else:
        small = np.array(image.resize((new, count * SIZE), Image.Resampling.BILINEAR))
        whole = np.pad(small, ((0, 0), (before, pad - before), (0, 0)), constant_values=255)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(whole) / 255.0 - mean) / std).permute(2, 0, 1)
    return pixels, whole.shape[0] // SIZE, whole.shape[1] // SIZE


def ended(grid: Tensor, end: Tensor) -> Tensor:
    """Four patches to one, and an end behind each row."""
    joined = torch.cat([grid[i::2, j::2] for i in (0, 1) for j in (0, 1)], dim=-1)
    return torch.cat([joined, end[0].expand(len(joined), 1, -1)], dim=1).flatten(0, 1)


def test_phi_3_v_as_it_was_published(model: Published) -> None:
    asked: list[tuple[str, Any]] = [
        ("Look: <|image|> what is it?", [picture(70, 30, 1)]),
        ("<|image|>", [picture(30, 75, 2)]),
        ("The tide came in twice a day", []),
        ("compare <|image|> with <|image|> please", [picture(70, 30, 1), picture(32, 32, 3)]),
    ]
    says_the_same(model, asked)


def test_placeholders_of_phi_3_v_have_numbers(model: Published) -> None:
    one, other = picture(70, 30, 1), picture(32, 32, 3)
    case = model.case("Look: <|image|>\n<|image|> what is it?", [one, other])
    with make(model.folder) as llm:
        prompt: dict[str, Any] = {"multi_modal_data": {"image": [one, other]}}
        prompt["prompt"] = "Look: <|image_1|>\n<|image_2|> what is it?"
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
        assert output.prompt_token_ids == case.ids and list(output.outputs[0].token_ids) == case.tokens
        with pytest.raises(RequestError, match="have the numbers 2, 1; number them from 1"):
            llm.generate({**prompt, "prompt": "<|image_2|> <|image_1|>"}, GREEDY, use_tqdm=False)
        fewer = {**prompt, "mm_processor_kwargs": {"num_crops": 1}}
        ids = llm.generate(fewer, GREEDY, use_tqdm=False)[0].prompt_token_ids
        assert ids.count(model.tokens[0]) == 2 * (2 * 4 + 2 * 2 + 1)
        with pytest.raises(RequestError, match="'crops'; it takes num_crops"):
            llm.generate({**prompt, "mm_processor_kwargs": {"crops": 1}}, GREEDY, use_tqdm=False)
