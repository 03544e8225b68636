"""Models that embed pictures and texts give what transformers gives: offline, and as a server's routes have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import normalize

from tests.media.test_models import make
from tests.media.tiny import picture
from tests.media.tiny_embedders import PAIRS
from vllm import LLM
from vllm.errors import RequestError
from vllm.inputs.media.assemble import load_processor

TEXTS = ("The tide came in", "a boat")
PICTURES = (picture(40, 30, 1), picture(32, 48, 2))


def embedded(llm: LLM, prompts: Any) -> Tensor:
    return torch.tensor([output.outputs.embedding for output in llm.embed(prompts, use_tqdm=False)])


def of_picture(image: Any) -> dict[str, Any]:
    return {"prompt": "", "multi_modal_data": {"image": image}}


@pytest.mark.parametrize("name", [make.__name__ for make in PAIRS])
def test_a_text_and_a_picture_are_embedded_by_their_towers(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    processor: Any = load_processor(folder)
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    padding = {"padding": "max_length", "max_length": 32} if "siglip" in name else {}
    expected = []
    with torch.inference_mode():
        for text in TEXTS:
            ids = processor.tokenizer(text, return_tensors="pt", **padding)["input_ids"]
            expected.append(model.get_text_features(input_ids=ids).pooler_output[0])
        for image in PICTURES:
            inputs = processor(images=[image], return_tensors="pt")
            expected.append(model.get_image_features(**inputs).pooler_output[0])
    with make(folder, max_model_len=32) as llm:
        prompts = [*TEXTS, *map(of_picture, PICTURES)]
        together = embedded(llm, prompts)
        torch.testing.assert_close(together, normalize(torch.stack(expected), dim=1), atol=1e-4, rtol=0.0)
        assert torch.equal(together, torch.cat([embedded(llm, prompt) for prompt in prompts]))


def test_a_model_of_two_towers_refuses_both_at_once(media_checkpoint: Callable[[str], Path]) -> None:
    with make(media_checkpoint("clip"), max_model_len=32) as llm:
        with pytest.raises(RequestError, match="a text or a single image"):
            llm.embed({"prompt": "a boat", "multi_modal_data": {"image": PICTURES[0]}}, use_tqdm=False)
        with pytest.raises(RequestError, match="a text or a single image"):
            llm.embed({"prompt": "", "multi_modal_data": {"image": list(PICTURES)}}, use_tqdm=False)


def test_a_model_of_texts_that_pools_refuses_pictures(checkpoint: Callable[..., Path]) -> None:
    with (
        make(checkpoint("llama"), max_model_len=32, task="embed") as llm,
        pytest.raises(RequestError, match="text only"),
    ):
        llm.embed(of_picture(PICTURES[0]), use_tqdm=False)
