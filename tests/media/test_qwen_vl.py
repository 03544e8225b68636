"""Qwen-VL as it was published, with a vocabulary of ranks."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from tests.media.cases import GREEDY
from tests.media.published import Published, drawn, says_the_same, scaled, text_part, written
from tests.media.test_models import make
from tests.media.tiny import Maker, picture
from vllm.errors import RequestError
from vllm.inputs.ranked_vocabulary import BYTE_OF
from vllm.inputs.tokenizer import load_tokenizer

SIZE, PATCH, COUNT = 96, 4, 16
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205))]
WORDS += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]


class Eye(nn.Module):
    """The tower under its published names, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, PATCH, PATCH, bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(256, 32))
        self.ln_pre, self.ln_post = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(256, eps=1e-6)
        self.transformer: Any = nn.Module()
        self.transformer.resblocks = nn.ModuleList([Block(), Block()])
        self.attn_pool: Any = nn.Module()
        self.attn_pool.query, self.attn_pool.pos_embed = (nn.Parameter(torch.zeros(COUNT, 256)) for _ in range(2))
        self.attn_pool.kv_proj, self.attn_pool.attn = nn.Linear(32, 256, bias=False), nn.MultiheadAttention(256, 2)
        self.attn_pool.ln_q, self.attn_pool.ln_kv = nn.LayerNorm(256, eps=1e-6), nn.LayerNorm(256, eps=1e-6)
        self.proj = nn.Parameter(torch.zeros(256, 256))

    def forward(self, pixels: Tensor) -> Tensor:
        pool, side = self.attn_pool, SIZE // PATCH
        x = self.conv1(pixels).flatten(1).T + resized(self.positional_embedding, 16, side)
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            x = block(x)
        x = pool.ln_kv(pool.kv_proj(x))
        x = pool.attn(pool.ln_q(pool.query) + pool.pos_embed, x + resized(pool.pos_embed, 4, side), x)[0]
        return self.ln_post(x) @ self.proj


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32, eps=1e-6), nn.LayerNorm(32, eps=1e-6)
        self.attn: Any = nn.Module()
        self.attn.in_proj, self.attn.out_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.mlp: Any = nn.Module()
        self.mlp.c_fc, self.mlp.c_proj = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for head in self.attn.in_proj(self.ln_1(x)).split(48, dim=1):  # two heads
            q, k, v = head.split(16, dim=1)
            seen.append((q @ k.T / 4).softmax(-1) @ v)
        x = x + self.attn.out_proj(torch.cat(seen, dim=1))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x))))


def resized(places: Tensor, before: int, after: int) -> Tensor:
    grid = places.view(1, before, before, -1).permute(0, 3, 1, 2)
    return F.interpolate(grid, (after, after), mode="bicubic").permute(0, 2, 3, 1).flatten(0, 2)


def ranked(tokenizer_folder: Path, place: Path, file: str) -> Any:
    """Write a vocabulary's ranks, and return the same as transformers' tokenizer."""
    said = json.loads((tokenizer_folder / "tokenizer.json").read_text())["model"]
    tokens = [token for token in sorted(said["vocab"], key=said["vocab"].get) if set(token) <= set(BYTE_OF)]
    tokens = [token for token in tokens if not token.startswith("<|")]
    place.mkdir(exist_ok=True)
    lines = (f"{base64.b64encode(bytes(BYTE_OF[c] for c in token)).decode()} {i}\n" for i, token in enumerate(tokens))
    (place / file).write_text("".join(lines))
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in said["merges"]]
    return transformers.Qwen2TokenizerFast(vocab=vocab, merges=merges)


@pytest.fixture
def model(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> Published:
    place = tmp_path / "qwen_vl"
    tokenizer = ranked(tokenizer_folders["byte level"], place, "qwen.tiktoken")
    tokenizer.add_special_tokens({"additional_special_tokens": WORDS})
    (place / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "QWenTokenizer",
                "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
            }
        )
    )
    maker = Maker(tokenizer_folders["byte level"])
    maker.use(tokenizer)
    text = text_part(maker, "qwen2", hidden_size=256, num_attention_heads=4, head_dim=64, num_key_value_heads=4)
    text, eye = scaled(text, 0.3), drawn(Eye(), 0.5)
    config = {
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "torch_dtype": "float32", "hidden_size": 256,
        "auto_map": {"AutoConfig": "configuration_qwen.QWenConfig"}, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 192, "kv_channels": 64, "seq_length": 2048, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000,
        "vocab_size": maker.vocab_size, "no_bias": True, "use_dynamic_ntk": True, "use_logn_attn": True,
        "visual": {"heads": 2, "image_size": SIZE, "image_start_id": maker.id("<img>"), "layers": 2, "mlp_ratio": 1.5,
                   "output_dim": 256, "patch_size": PATCH, "width": 32, "n_queries": COUNT},
    }  # fmt: skip
    tower = {f"transformer.visual.{name}": value for name, value in eye.state_dict().items()}
    folder = written(place, None, config, text, {}, tower | renamed(text))

    def see(image: Any) -> tuple[str, Tensor]:
        pixels = torch.tensor(np.array(image.resize((SIZE, SIZE), 3))) / 255
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        return "<img>" + "<imgpad>" * COUNT + "</img>", eye(((pixels - mean) / std).permute(2, 0, 1))

    return Published(folder, tokenizer, text, "<img></img>", (maker.id("<imgpad>"),), see)


def renamed(text: Any) -> dict[str, Tensor]:
    """Qwen2's tensors under qwen's names."""
    names = {
        r"model\.embed_tokens": "transformer.wte", r"model\.norm": "transformer.ln_f", r"model\.layers": "transformer.h",
        r"input_layernorm": "ln_1", r"post_attention_layernorm": "ln_2", r"self_attn\.o_proj": "attn.c_proj",
        r"mlp\.gate_proj": "mlp.w2", r"mlp\.up_proj": "mlp.w1", r"mlp\.down_proj": "mlp.c_proj", r"self_attn\.q_proj": "attn.c_attn",
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


def test_qwen_vl_as_it_was_published(model: Published) -> None:
    asked: list[tuple[str, Any]] = [
        ("Picture 1: <img></img>\nWhat is it?", [picture(40, 30, 1)]),
        ("<img></img>", [picture(64, 48, 2)]),
        ("The tide came in twice a day", []),
        ("Picture 1: <img></img>\nPicture 2: <img></img>\nCompare them", [picture(40, 30, 1), picture(32, 32, 3)]),
    ]
    says_the_same(model, asked)
    case = model.case("Picture 1: <img></img>\nWhat is it?", [picture(40, 30, 1)])
    prompt: dict[str, Any] = {"multi_modal_data": {"image": picture(40, 30, 1)}}
    with make(model.folder) as llm:
        named = {**prompt, "prompt": "Picture 1: <img>https://example.com/a.png</img>\nWhat is it?"}
        assert llm.generate(named, GREEDY, use_tqdm=False)[0].prompt_token_ids == case.ids
        with pytest.raises(RequestError, match="there are no options, and 'size' is given"):
            llm.generate({**named, "mm_processor_kwargs": {"size": 1}}, GREEDY, use_tqdm=False)


TEXTS = [
    "The tide came in twice a day, and we'll go out at 12345 o'clock!",
    "  two  spaces\n\n and\tlines \r\n",
    "naïve café 好 🙂 x́",
]


def test_a_vocabulary_of_ranks_reads_as_its_merges_do(model: Published) -> None:
    tokenizer = load_tokenizer(model.folder)
    for text in [*TEXTS, "<|im_start|>user\n<img></img><|im_end|>"]:
        ids = tokenizer.encode(text)
        assert ids == model.tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == model.tokenizer.decode(ids)
    assert tokenizer.encode("<imgpad>") == [len(model.tokenizer) - 1]
