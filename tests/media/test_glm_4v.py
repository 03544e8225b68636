"""GLM-4V as it was published: a chatglm in which the patches of a picture have one position together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.media.cases import GREEDY
from tests.media.published import Published, drawn, says_the_same, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import RequestError

SIZE, PATCH, SIDE = 32, 4, 8
BEGIN, PLACE, END = "<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>"
MARK = BEGIN + PLACE + END
VISION = {
    "dropout_prob": 0.0,
    "hidden_act": "gelu",
    "in_channels": 3,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "patch_size": PATCH,
}
VISION |= {
    "num_heads": 2,
    "intermediate_size": 48,
    "num_positions": SIDE**2 + 1,
    "image_size": SIZE,
    "layer_norm_eps": 1e-6,
}
VISION |= {"scaling_factor": 8}


class Eye(nn.Module):
    """The tower under its published names, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embedding: Any = nn.Module()
        self.patch_embedding.proj = nn.Conv2d(3, 32, PATCH, PATCH)
        self.patch_embedding.cls_embedding = nn.Parameter(torch.zeros(1, 32))
        self.patch_embedding.position_embedding = nn.Embedding(SIDE**2 + 1, 32)
        self.transformer: Any = nn.Module()
        self.transformer.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(32, 64, 2, 2)
        self.linear_proj: Any = nn.Module()
        self.linear_proj.linear_proj, self.linear_proj.norm1 = nn.Linear(64, 64, bias=False), nn.LayerNorm(64)
        self.linear_proj.gate_proj, self.linear_proj.dense_h_to_4h = (nn.Linear(64, 96, bias=False) for _ in range(2))
        self.linear_proj.dense_4h_to_h = nn.Linear(96, 64, bias=False)
        self.boi, self.eoi = nn.Parameter(torch.zeros(1, 1, 64)), nn.Parameter(torch.zeros(1, 1, 64))

    def forward(self, pixels: Tensor) -> Tensor:
        embed, project = self.patch_embedding, self.linear_proj
        x = torch.cat([embed.cls_embedding, embed.proj(pixels).flatten(1).T]) + embed.position_embedding.weight
        for block in self.transformer.layers:
            x = block(x)
        x = project.linear_proj(self.conv(x[1:].T.view(32, SIDE, SIDE)).flatten(1).T)
        x = F.gelu(project.norm1(x))
        x = project.dense_4h_to_h(F.silu(project.gate_proj(x)) * project.dense_h_to_4h(x))
        return torch.cat([self.boi[0], x, self.eoi[0]]) / 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
        self.attention: Any = nn.Module()
        self.attention.query_key_value, self.attention.dense = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attention.query_key_value(x).view(-1, 3, 2, 16).permute(1, 2, 0, 3)
        seen = ((q @ k.mT / 4).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + self.input_layernorm(self.attention.dense(seen))
        return x + self.post_attention_layernorm(self.mlp.fc2(F.gelu(self.mlp.fc1(x))))


@pytest.fixture
def model(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> Published:
    maker = Maker(tokenizer_folders["byte level"])
    maker.tokenizer.add_special_tokens({"additional_special_tokens": [PLACE]})
    maker.use(maker.tokenizer)
    rope = {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5}
    text = text_part(maker, "glm", rope_parameters=rope, attention_bias=True, tie_word_embeddings=False)
    eye = drawn(Eye())
    config = {
        "architectures": ["ChatGLMModel"], "model_type": "chatglm", "torch_dtype": "float32", "vision_config": VISION,
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"}, "padded_vocab_size": maker.vocab_size,
        "hidden_size": 64, "num_layers": 2, "num_attention_heads": 4, "multi_query_attention": True, "kv_channels": 16,
        "multi_query_group_num": 2, "ffn_hidden_size": 96, "seq_length": 2048, "layernorm_epsilon": text.config.rms_norm_eps,
        "add_qkv_bias": True, "add_bias_linear": False, "rmsnorm": True, "post_layer_norm": True, "rope_ratio": 5,
        "apply_residual_connection_post_layernorm": False, "original_rope": True, "boi_token_id": maker.id(BEGIN),
    }  # fmt: skip
    tower = {f"transformer.vision.{name}": value for name, value in eye.state_dict().items()}
    folder = written(tmp_path / "glm_4v", maker.tokenizer, config, text, {}, tower | renamed(text))

    def see(image: Any) -> tuple[str, Tensor]:
        pixels = torch.tensor(np.array(image.resize((SIZE, SIZE), 3))) / 255
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        return BEGIN + PLACE * 16 + END, eye(((pixels - mean) / std).permute(2, 0, 1))

    place, marks = maker.id(PLACE), (maker.id(BEGIN), maker.id(PLACE), maker.id(END))

    def positions(ids: list[int]) -> list[int]:
        found = [0]
        for before, token in zip(ids, ids[1:], strict=False):
            found.append(found[-1] + (not before == token == place))
        return found

    return Published(folder, maker.tokenizer, text, MARK, marks, see, positions=positions)


def renamed(text: Any) -> dict[str, Tensor]:
    """Glm's tensors under chatglm's names."""
    names = {
        r"model\.embed_tokens": "transformer.embedding.word_embeddings", r"^lm_head": "transformer.output_layer",
        r"model\.norm": "transformer.encoder.final_layernorm", r"model\.layers": "transformer.encoder.layers",
        r"self_attn\.o_proj": "self_attention.dense", r"gate_up_proj": "dense_h_to_4h", r"down_proj": "dense_4h_to_h",
        r"self_attn\.q_proj": "self_attention.query_key_value",
    }  # fmt: skip
    state, found = text.state_dict(), {}
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            tensor = torch.cat([state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for theirs, ours in names.items():
            name = re.sub(theirs, ours, name)
        found[name] = tensor
    return found


def test_glm_4v_as_it_was_published(model: Published) -> None:
    asked: list[tuple[str, Any]] = [
        (f"Look: {MARK} what is it?", [picture(40, 30, 1)]),
        (MARK, [picture(64, 48, 2)]),
        ("The tide came in twice a day", []),
        (f"compare {MARK} with {MARK} please", [picture(40, 30, 1), picture(32, 32, 3)]),
    ]
    says_the_same(model, asked)
    prompt = {"prompt": MARK, "multi_modal_data": {"image": picture(40, 30)}}
    with make(model.folder) as llm:
        with pytest.raises(RequestError, match="there are no options, and 'size' is given"):
            llm.generate({**prompt, "mm_processor_kwargs": {"size": 1}}, GREEDY, use_tqdm=False)
        with pytest.raises(RequestError, match="leave those out that belong to none"):
            llm.generate({**prompt, "prompt": f"{MARK} {PLACE}"}, GREEDY, use_tqdm=False)
