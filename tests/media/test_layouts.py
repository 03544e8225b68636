"""Models in the layout that they were published in say what they say in transformers' layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.media.cases import GREEDY, LENGTH, RATE, cases_of, check, narrow, wave
from tests.media.test_models import make
from tests.media.tiny import Maker, internvl, picture
from vllm.errors import ModelError, RequestError

_NAMES = {
    "vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "vision_tower.embeddings.patch_embeddings.projection": "vision_model.embeddings.patch_embedding",
    "vision_tower.encoder.layer.": "vision_model.encoder.layers.",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
    "attention.projection_layer": "attn.proj",
    "attention.q_proj": "attn.qkv",
    "attention.q_norm": "attn.q_norm",
    "attention.k_norm": "attn.k_norm",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_": "ls",
}


def published(folder: Path, place: Path, **changes: Any) -> Path:
    """Write transformers' InternVL as it was published."""
    place.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, place)
    stored = load_file(folder / "model.safetensors")
    found: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if "attention.k_proj" in name or "attention.v_proj" in name:
            continue
        if "attention.q_proj" in name:
            tensor = torch.cat([stored[name.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours) if "language_model" not in name else name
        found[name] = tensor
    save_file(found, place / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    vision |= {"image_size": 32, "patch_size": 8, "qkv_bias": vision["attention_bias"]}
    vision |= {"qk_normalization": vision["use_qk_norm"], "model_type": "intern_vit_6b"}
    content = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
        "torch_dtype": "float32",
        "vision_config": vision,
        "llm_config": {
            **config["text_config"],
            "architectures": ["Qwen2ForCausalLM"],
            "tie_word_embeddings": config["tie_word_embeddings"],
        },
        "force_image_size": 32,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "max_dynamic_patch": 4,
        "dynamic_image_size": True,
        "use_thumbnail": True,
    }
    (place / "config.json").write_text(json.dumps({**content, **changes}))
    return place


def test_internvl_as_it_was_published(media_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    original = media_checkpoint("internvl")
    cases = cases_of("internvl", original)
    for case in cases:  # there a picture's place is the token that its tiles have
        case.text = case.text.replace("<IMG_CONTEXT>", "<image>")
    folder = published(original, tmp_path / "internvl_chat")
    with make(folder) as llm:
        for case in cases:
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
        again = llm.generate(cases[-1].prompt, GREEDY, use_tqdm=False)[0]
        check(cases[-1], again)
        assert again.num_cached_tokens
        one = {"prompt": "<image>", "multi_modal_data": {"image": picture(64, 32)}}
        counts = [
            llm.generate({**one, "mm_processor_kwargs": kwargs}, GREEDY, use_tqdm=False)[0].prompt_token_ids
            for kwargs in ({}, {"max_dynamic_patch": 1}, {"use_thumbnail": False})
        ]
        assert [len(ids) for ids in counts] == [2 + 3 * 4, 2 + 4, 2 + 2 * 4]
        with pytest.raises(RequestError, match="'tiles'; it takes min_dynamic_patch"):
            llm.generate({**one, "mm_processor_kwargs": {"tiles": 2}}, GREEDY, use_tqdm=False)
    with make(folder, max_num_batched_tokens=narrow("internvl")) as llm:
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


def test_internvl_that_reads_with_internlm2(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    maker = Maker(tokenizer_folders["byte level"])
    config, processor = internvl(maker)
    config = transformers.InternVLConfig(**{**config.to_dict(), "text_config": maker.text("llama")})
    original = maker.save(tmp_path / "internvl", config, processor)
    folder = published(original, tmp_path / "internvl_chat", tie_word_embeddings=True)
    stored = load_file(folder / "model.safetensors")
    save_file(dict(_as_internlm2(stored)), folder / "model.safetensors", {"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    content["llm_config"] |= {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "bias": False}
    content["llm_config"] |= {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(content))
    with make(folder) as llm:
        for case in cases_of("internvl", original):
            case.text = case.text.replace("<IMG_CONTEXT>", "<image>")
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])


def _as_internlm2(stored: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Give a llama of 4 heads in 2 groups internlm2's names: q, k and v are one tensor, group by group."""
    names = {"embed_tokens": "tok_embeddings", "self_attn.o_proj": "attention.wo", "self_attn.q_proj": "attention.wqkv"}
    names |= {"mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2"}
    names |= {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    yield "language_model.output.weight", stored["language_model.model.embed_tokens.weight"].clone()
    for name, tensor in stored.items():
        if "k_proj" in name or "v_proj" in name or "lm_head" in name:
            continue
        if "self_attn.q_proj" in name:
            k, v = (stored[name.replace("q_proj", f"{part}_proj")] for part in "kv")
            parts = [tensor.view(2, 2, 16, 64), k.view(2, 1, 16, 64), v.view(2, 1, 16, 64)]
            tensor = torch.cat(parts, dim=1).reshape(-1, 64)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        yield name, tensor


def test_internvl_that_is_not_known_is_refused(media_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = published(media_checkpoint("internvl"), tmp_path / "internvl_chat", ps_version="v1")
    with pytest.raises(ModelError, match="ps_version='v1'"):
        make(folder)


@torch.inference_mode()
def test_voxtral_hears_in_windows(media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint("voxtral")
    model = transformers.VoxtralForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    sound = wave(40000)  # two windows of 2 seconds, the second of them mostly silence
    windows = [np.pad(sound[start : start + 32000], (0, max(0, start - 8000))) for start in (0, 32000)]
    both = extractor(np.concatenate(windows), sampling_rate=RATE, truncation=False, return_tensors="pt")
    features = torch.cat(both["input_features"].split(200, dim=2))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Hear [BEGIN_AUDIO]" + "[AUDIO]" * 50 + " and tell", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    expected = model.generate(input_ids=ids, input_features=features, **options)
    prompt = {"prompt": "Hear [AUDIO] and tell", "multi_modal_data": {"audio": (sound, RATE)}}
    for most in (2048, 24):
        with make(folder, max_num_batched_tokens=most) as llm:
            output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
            assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == expected[0].tolist()
