"""Models that embed pictures and texts give what transformers gives: offline, and as a server's routes have it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from tests.entrypoints.serve.serving import Serving, starting
from tests.inputs.media.test_fetch import as_data, png
from tests.media.test_models import make
from tests.media.tiny import picture
from tests.media.tiny_embedders import PAIRS, RETRIEVERS
from vllm import LLM
from vllm.errors import RequestError
from vllm.inputs.media.assemble import load_processor

SERVED = ("clip", "colqwen2")
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


@pytest.mark.parametrize("name", [make.__name__ for make in RETRIEVERS])
def test_tokens_of_queries_and_pages_are_embedded(name: str, media_checkpoint: Callable[[str], Path]) -> None:
    folder = media_checkpoint(name)
    processor: Any = load_processor(folder)
    architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
    model = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for given in [*({"text": [text]} for text in TEXTS), *({"images": [image]} for image in PICTURES)]:
        inputs = dict(processor(**given, return_tensors="pt"))
        inputs.pop("labels", None)
        if name == "colqwen2" and "images" in given:  # transformers' class leaves positions in space to the caller
            types = (inputs["input_ids"] == processor.image_token_id).int()
            grid = inputs["image_grid_thw"]
            inputs["position_ids"], _ = model.vlm.get_rope_index(inputs["input_ids"], types, image_grid_thw=grid)
        with torch.inference_mode():
            expected.append(model(**inputs).embeddings[0])
    with make(folder) as llm:
        prompts = [*TEXTS, *map(of_picture, PICTURES)]
        outputs = llm.encode(prompts, pooling_task="token_embed", use_tqdm=False)
        for output, wanted in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.as_tensor(output.outputs.data), wanted, atol=1e-4, rtol=0.0)


def test_pages_are_scored_by_their_tokens(media_checkpoint: Callable[[str], Path]) -> None:
    with make(media_checkpoint("colqwen2")) as llm:
        query, *pages = llm.encode(["a boat", *map(of_picture, PICTURES)], pooling_task="token_embed", use_tqdm=False)
        alike = [(query.outputs.data @ page.outputs.data.T).max(1).values.sum() for page in pages]
        parts = [{"content": [{"type": "image_pil", "image_pil": image}]} for image in PICTURES]
        scores = [output.outputs.score for output in llm.score("a boat", parts, use_tqdm=False)]
    torch.testing.assert_close(torch.tensor(scores), torch.stack(alike), atol=1e-4, rtol=0.0)


def test_a_model_that_generates_embeds_and_scores_what_it_sees(media_checkpoint: Callable[[str], Path]) -> None:
    with make(media_checkpoint("llava"), task="embed") as llm:
        texts, seen = (
            embedded(llm, "a boat"),
            embedded(llm, {**of_picture(PICTURES[0]), "prompt": "<image>\nIn a word:"}),
        )
        parts = [{"type": "image_pil", "image_pil": PICTURES[0]}, {"type": "text", "text": "In a word:"}]
        (score,) = llm.score("a boat", {"content": parts}, use_tqdm=False)
        assert score.outputs.score == pytest.approx(float(texts[0] @ seen[0]), abs=1e-5)


@pytest.fixture(scope="module")
def server(media_checkpoint: Callable[[str], Path]) -> Iterator[Serving]:
    models = [json.dumps({"model": str(media_checkpoint(name)), "served_model_name": name}) for name in SERVED]
    options = [word for model in models for word in ("--model", model)]
    with starting(*options, "--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 24)) as running:
        running.read_until("ready in")
        yield running


@pytest.mark.parametrize("name", SERVED)
def test_a_server_embeds_pictures_and_scores_them(
    name: str, server: Serving, media_checkpoint: Callable[[str], Path]
) -> None:
    image = {"type": "image_url", "image_url": {"url": as_data(png())}}
    picture = Image.open(io.BytesIO(png()))
    per_token = name == "colqwen2"
    with make(media_checkpoint(name), max_model_len=None) as llm:
        task = "token_embed" if per_token else "embed"
        (wanted,) = llm.encode(of_picture(picture), pooling_task=task, use_tqdm=False)
        (scored,) = llm.score("a boat", {"content": [{"type": "image_pil", "image_pil": picture}]}, use_tqdm=False)
    path = "/pooling" if per_token else "/v1/embeddings"
    (found,) = ask(server, path, model=name, messages=[{"role": "user", "content": [image]}])
    torch.testing.assert_close(torch.tensor(found["data" if per_token else "embedding"]), wanted.outputs.data)
    for one in ask(server, "/score", model=name, queries="a boat", documents=[{"content": [image]}] * 2):
        assert one["score"] == pytest.approx(scored.outputs.score, abs=1e-5)


def ask(server: Serving, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]
