"""Pictures that layers attend to: which of them a token sees, and that nothing else changes what it makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.media.cases import GREEDY, answered, check
from tests.media.test_models import make, names_of
from tests.media.tiny import has_torchvision, picture
from vllm import SamplingParams
from vllm.errors import RequestError

WIDE, HIGH, SMALL = (picture(60, 20, 4), picture(20, 60, 5), picture(30, 30, 6))
"""Pictures of two tiles, two, and one: the rest of its room is filled up"""
TEXTS: list[tuple[str, list[Any]]] = [
    ("Before <|image|><|image|> between <|image|> behind", [SMALL, WIDE, HIGH]),
    ("<|image|> one, and <|image|><|image|><|image|> three", [WIDE, SMALL, SMALL, HIGH]),
    ("The tide came in", []),
    ("last <|image|>", [SMALL]),
    ("<|image|><|image|>", [SMALL, HIGH]),
]


@pytest.mark.parametrize("kernels", ["", "torch"])
def test_a_token_sees_the_pictures_that_stand_together_before_it(
    kernels: str, media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        monkeypatch.setenv("VLLM_CPU_KERNELS", kernels)
    folder = media_checkpoint("mllama")
    cases = answered("mllama", folder, TEXTS)
    for step in (512, 7, 1):  # 1: each token, by itself
        with make(folder, max_num_batched_tokens=step) as llm:
            outputs = llm.generate([case.prompt for case in cases], GREEDY, use_tqdm=False)
            for case, output in zip(cases, outputs, strict=True):
                check(case, output)


@pytest.mark.parametrize("name", names_of(["mllama", "chameleon", "llava", "molmo2"]))
def test_company_changes_no_bit(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    place = "<image>" if name in ("chameleon", "llava") else "<|image|>"
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, logprobs=2)
    prompts: list[Any] = ["The tide came in twice a day", "children"]
    for color in ("red", "green", "blue", "white"):
        media = {"image": [Image.new("RGB", (40, 30), color), picture(30, 40)]}
        prompts.append({"prompt": f"Look: {place} {color}, then {place} again", "multi_modal_data": media})

    def said(llm: Any, prompts: list[Any]) -> list[Any]:
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [(one.outputs[0].token_ids, one.outputs[0].logprobs) for one in outputs]

    with make(folder) as llm:
        alone = [said(llm, [prompt])[0] for prompt in prompts]
        assert [said(llm, [prompt])[0] for prompt in prompts] == alone, "on a prefix hit"
        assert said(llm, prompts) == alone, "together"
    with make(folder, max_num_batched_tokens=64 if name == "molmo2" else 11, enable_prefix_caching=False) as llm:
        assert said(llm, prompts) == alone, "cut"
    with make(folder, max_model_len=256, num_gpu_blocks_override=17, enable_prefix_caching=False) as llm:
        assert said(llm, prompts) == alone, "preempted"
        assert llm.llm_engine.core.stats().num_preemptions > 0


@pytest.mark.skipif(not has_torchvision(), reason="its processor needs torchvision")
@pytest.mark.parametrize("kernels", ["", "torch"])
def test_pictures_of_a_prompt_see_each_other_past_the_text_between(
    kernels: str, media_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels:
        monkeypatch.setenv("VLLM_CPU_KERNELS", kernels)
    folder = media_checkpoint("molmo2")
    between = "<|image|> and then, behind many words that stand between the two, <|image|> b <|image|>"
    texts = [(f"a {between} end", [WIDE, HIGH, SMALL]), ("plain", []), ("<|image|><|image|>", [SMALL, WIDE])]
    cases = answered("molmo2", folder, texts)
    for options in ({}, {"max_num_batched_tokens": 128}, {"max_num_seqs": 1, "enable_prefix_caching": False}):
        with make(folder, **options) as llm:
            for _ in range(2):  # again, on a prefix hit
                outputs = llm.generate([case.prompt for case in cases], GREEDY, use_tqdm=False)
                for case, output in zip(cases, outputs, strict=True):
                    check(case, output)


def test_more_pictures_than_the_cache_has_room_for_are_refused(media_checkpoint: Callable[[str], Path]) -> None:
    prompt = {"prompt": "<|image|>" * 9, "multi_modal_data": {"image": [picture(8, 8, seed) for seed in range(9)]}}
    with (
        make(media_checkpoint("mllama"), max_model_len=64, max_num_seqs=2) as llm,
        pytest.raises(RequestError, match="positions that all its tokens attend to"),
    ):
        llm.generate(prompt, GREEDY, use_tqdm=False)
