"""Every model that sees says what it says in transformers: alone, in company, cut in pieces, and from what is cached."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from tests.media.tiny import FOREIGN, MAKERS, WITH_TORCHVISION, Maker, has_torchvision, picture
from vllm import LLM, SamplingParams
from vllm.inputs.media.assemble import load_processor
from vllm.models.media.tower import Tower

LENGTH = 5
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=1)
NO_TEXTS = ("paligemma", "mllama", "chameleon")
"""Whose processors write tokens of their own into texts without pictures, or refuse those"""


def names_of(makers: Any) -> list[Any]:
    skipped = pytest.mark.skipif(not has_torchvision(), reason="its processor needs torchvision")
    return [pytest.param(name, marks=skipped) if name in WITH_TORCHVISION else name for name in makers]


@dataclass
class Case:
    text: str
    pictures: list[Any]
    ids: list[int]
    tokens: list[int]
    logprobs: Tensor

    @property
    def prompt(self) -> dict[str, Any]:
        data = {"image": self.pictures} if self.pictures else None
        return {"prompt": self.text, "multi_modal_data": data}


def cases_of(name: str, folder: Path) -> list[Case]:
    """Prompts with and without pictures, and what transformers says to them."""
    maker = Maker(folder)
    config, _ = {**MAKERS, **FOREIGN}[name](maker)
    processor = load_processor(folder)
    kind = getattr(transformers, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    place = processor.image_token
    if "vision_start_token_id" in config.to_dict():
        place = f"<|vision_start|>{place}<|vision_end|>"
    if name == "glm4v":  # transformers counts on from a picture's last token in another way
        place = f"<|begin_of_image|>{place}<|end_of_image|>"
    one, other, third = picture(40, 30, 1), picture(64, 48, 2), picture(32, 32, 3)
    wanted: list[tuple[str, list[Any]]] = [
        (f"Look: {place} what is it?", [one]),
        (place, [other]),
        ("The tide came in twice a day", []),
        (f"compare {place} with {place} please", [one, third]),
    ]
    if name in NO_TEXTS:
        del wanted[2]
    return [_answered(model, processor, text, pictures) for text, pictures in wanted]


@torch.inference_mode()
def _answered(model: Any, processor: Any, text: str, pictures: list[Any]) -> Case:
    inputs = dict(processor(text=text, images=pictures or None, return_tensors="pt"))
    inputs = {key: value.float() if torch.is_floating_point(value) else value for key, value in inputs.items()}
    takes = {*inspect.signature(model.forward).parameters, "mm_token_type_ids"} - {"labels"}
    result = model.generate(
        **{key: value for key, value in inputs.items() if key in takes},
        max_new_tokens=LENGTH,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
        pad_token_id=1,
    )
    ids = inputs["input_ids"][0].tolist()
    best = torch.stack([logits[0].float().log_softmax(-1).max() for logits in result.logits])
    return Case(text, pictures, ids, result.sequences[0, len(ids) :].tolist(), best)


def check(case: Case, output: Any) -> None:
    assert output.prompt_token_ids == case.ids
    chosen = output.outputs[0]
    assert list(chosen.token_ids) == case.tokens
    found = torch.tensor([next(iter(step.values())).logprob for step in chosen.logprobs])
    torch.testing.assert_close(found, case.logprobs, atol=2e-4, rtol=0.0)


def make(folder: Path, **options: Any) -> LLM:
    options = {"max_model_len": 512, "kv_cache_memory_bytes": 1 << 24, "max_num_seqs": 8, **options}
    return LLM(str(folder), dtype="float32", **options)


@pytest.mark.parametrize("name", names_of(MAKERS))
def test_a_model_says_what_transformers_says(
    name: str, media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = media_checkpoint(name)
    cases = cases_of(name, folder)
    encoded: list[bytes] = []
    encode = Tower.encode
    monkeypatch.setattr(Tower, "encode", lambda self, media: encoded.append(media.key) or encode(self, media))
    with make(folder) as llm:
        for case in cases:  # alone; the last one's first picture is known to the tower
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
        assert len(encoded) == len(set(encoded)) == 3, "the tower saw a picture twice"
        again = llm.generate(cases[3].prompt, GREEDY, use_tqdm=False)[0]  # a prefix hit
        check(cases[3], again)
        assert again.num_cached_tokens
        assert len(encoded) == 3
    with make(folder, max_num_batched_tokens=24) as llm:  # together, and cut within pictures
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


@pytest.mark.parametrize("name", names_of(name for name in FOREIGN if name != "qwen2_audio"))
def test_transformers_modules_see_too(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    cases = cases_of(name, folder)
    with make(folder) as llm:
        for case in cases:
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
    with make(folder, max_num_batched_tokens=512, max_num_seqs=2) as llm:
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


def test_transformers_modules_hear_too(media_checkpoint: Callable[[str], Path]) -> None:
    check_hearing(media_checkpoint("qwen2_audio"))


def check_hearing(folder: Path) -> None:
    config, processor = FOREIGN["qwen2_audio"](Maker(folder))
    model: Any = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    text = "Hear <|audio_bos|><|AUDIO|><|audio_eos|> and tell"
    wave = np.sin(np.arange(20000) / 20).astype(np.float32)
    inputs = processor(text=text, audio=[wave], sampling_rate=16000, return_tensors="pt")
    options = {"max_new_tokens": LENGTH, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    with torch.inference_mode():
        expected = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    with make(folder) as llm:
        prompt = {"prompt": text, "multi_modal_data": {"audio": (wave, 16000)}}
        output = llm.generate(prompt, GREEDY, use_tqdm=False)[0]
    assert output.prompt_token_ids == inputs["input_ids"][0].tolist()
    assert list(output.outputs[0].token_ids) == expected


def test_torch_sees_as_the_kernels_do(media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of a picture that see each other, in the reference of attention."""
    monkeypatch.setenv("VLLM_CPU_KERNELS", "torch")
    folder = media_checkpoint("gemma3")
    with make(folder, max_num_batched_tokens=24) as llm:
        for case in cases_of("gemma3", folder):
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_pictures_are_embedded(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    config, _ = MAKERS[name](Maker(folder))
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


@pytest.mark.skipif(not has_torchvision(), reason="transformers' processors of videos need torchvision")
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "llava_next_video"])
def test_videos_are_seen(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    config, _ = MAKERS[name](Maker(folder))
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
