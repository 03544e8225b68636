"""Every model that takes media says what it says in transformers: alone, in company, cut in pieces, and from what is cached."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from tests.media.cases import GREEDY, LENGTH, RATE, cases_of, check, narrow, wave
from tests.media.makers import FAMILIES, NEEDS
from tests.media.tiny import Maker, has_torchvision, picture
from vllm import LLM, SamplingParams
from vllm.inputs.media.assemble import load_processor
from vllm.models.media.tower import StatesTower, Tower


def names_of(makers: Any) -> list[Any]:
    needs = {name: NEEDS[name] for name in makers if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None}
    skips = {name: pytest.mark.skip(reason=f"its processor needs {package}") for name, package in needs.items()}
    return [pytest.param(name, marks=skips[name]) if name in skips else name for name in makers]


def make(folder: Path, **options: Any) -> LLM:
    options = {"max_model_len": 2048, "kv_cache_memory_bytes": 1 << 24, "max_num_seqs": 8, **options}
    return LLM(str(folder), dtype="float32", **options)


@pytest.mark.parametrize("name", names_of(FAMILIES))
def test_a_model_says_what_transformers_says(
    name: str, media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = media_checkpoint(name)
    cases = cases_of(name, folder)
    encoded: list[bytes] = []
    encode, look = Tower.encode, StatesTower.look
    monkeypatch.setattr(Tower, "encode", lambda self, media: encoded.append(media.key) or encode(self, media))
    monkeypatch.setattr(StatesTower, "look", lambda self, media: encoded.append(media.key) or look(self, media))
    with make(folder, max_num_batched_tokens=2048) as llm:  # so many embeddings are kept, too
        for case in cases:  # alone; the last one's first picture is known to the tower
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
        assert len(encoded) == len(set(encoded)) == 3, "the tower saw a picture twice"
        again = llm.generate(cases[-1].prompt, GREEDY, use_tqdm=False)[0]  # a prefix hit
        check(cases[-1], again)
        assert again.num_cached_tokens
        assert len(encoded) == 3
    with make(folder, max_num_batched_tokens=narrow(name)) as llm:  # together, and cut within pictures
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


@pytest.mark.parametrize("name", ["chameleon", "mllama"])
def test_transformers_modules_see_too(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    cases = cases_of(name, folder)
    with make(folder, model_impl="transformers") as llm:
        for case in cases:
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
    with make(folder, max_num_batched_tokens=512, max_num_seqs=2, model_impl="transformers") as llm:
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


def test_torch_sees_as_the_kernels_do(media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a picture that see each other, in the reference of attention."""
    monkeypatch.setenv("VLLM_CPU_KERNELS", "torch")
    folder = media_checkpoint("gemma3")
    with make(folder, max_num_batched_tokens=24) as llm:
        for case in cases_of("gemma3", folder):
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])


def test_pictures_are_read_as_tokens_which_are_never_written(media_checkpoint: Callable[[str], Path]) -> None:
    pictures = range(100, 116)
    wanted = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, logit_bias=dict.fromkeys(pictures, 100.0))
    with make(media_checkpoint("chameleon")) as llm:
        prompt = {"prompt": "Draw <image>", "multi_modal_data": {"image": picture(40, 30)}}
        written = llm.generate(prompt, wanted, use_tqdm=False)[0].outputs[0].token_ids
    assert not set(written) & set(pictures)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mllama", "chameleon"])
def test_pictures_are_embedded(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    config, _ = FAMILIES[name](Maker(folder))
    processor = load_processor(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
    place = processor.image_token
    text = f"See <|vision_start|>{place}<|vision_end|> it" if "qwen" in name else f"See {place} it"
    inputs = dict(processor(text=text, images=[picture(40, 30)], return_tensors="pt"))
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model.model(**inputs).last_hidden_state[0, -1], dim=0)
    with make(folder, task="embed") as llm:
        prompt = {"prompt": text, "multi_modal_data": {"image": picture(40, 30)}}
        (output,) = llm.embed(prompt, use_tqdm=False)
    torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, atol=1e-4, rtol=0.0)


def test_a_preempted_prompt_is_seen_again(media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint("llava")
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    colors = ["red", "green", "blue", "white"]
    prompts = [
        {"prompt": f"Look: <image> {color}", "multi_modal_data": {"image": Image.new("RGB", (32, 32), color)}}
        for color in colors
    ]
    with make(folder) as llm:
        alone = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    with make(folder, max_model_len=96, num_gpu_blocks_override=9) as llm:
        together = llm.generate(prompts, params, use_tqdm=False)
        assert llm.llm_engine.core.stats().num_preemptions > 0
    assert [output.outputs[0].token_ids for output in together] == alone


@pytest.mark.skipif(not has_torchvision(), reason="its processor needs torchvision")
def test_a_sound_beside_pictures_is_heard_in_another_way(media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint("phi4_multimodal")
    processor = load_processor(folder)
    kind: Any = transformers.Phi4MultimodalForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    sound, look = wave(20000), picture(40, 30)
    options = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    asked = [
        ("Hear <|audio|> now", {"audio": [sound]}),
        ("See <image>, hear <|audio|>", {"image": [look], "audio": [sound]}),
    ]
    with make(folder, max_num_batched_tokens=64) as llm:
        for text, media in asked:
            given = {"images" if name == "image" else name: value for name, value in media.items()}
            inputs = dict(processor(text=text, return_tensors="pt", sampling_rate=RATE, **given))
            takes = inspect.signature(model.forward).parameters
            with torch.inference_mode():
                expected = model.generate(**{name: inputs[name] for name in inputs if name in takes}, **options)
            data = {**media, "audio": [(sound, RATE)]}
            output = llm.generate({"prompt": text, "multi_modal_data": data}, GREEDY, use_tqdm=False)[0]
            assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == expected[0].tolist()


@pytest.mark.skipif(not has_torchvision(), reason="transformers' processors of videos need torchvision")
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video"])
def test_videos_are_seen(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    config, _ = FAMILIES[name](Maker(folder))
    processor = load_processor(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    place = processor.video_token
    text = f"See <|vision_start|>{place}<|vision_end|> it" if "qwen" in name else f"See {place} it"
    inputs = dict(processor(text=text, videos=[frames], return_tensors="pt"))
    takes = {*inspect.signature(model.forward).parameters, "mm_token_type_ids"}
    with torch.inference_mode():
        result = model.generate(
            **{key: value for key, value in inputs.items() if key in takes},
            max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=1,
        )  # fmt: skip
    with make(folder, max_num_batched_tokens=16) as llm:
        (output,) = llm.generate({"prompt": text, "multi_modal_data": {"video": frames}}, GREEDY, use_tqdm=False)
    assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == result[0].tolist()
