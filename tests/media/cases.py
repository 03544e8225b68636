"""Prompts with media, and what transformers says to them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from tests.media.makers import MAKERS, SOUNDS
from tests.media.tiny import Maker, picture
from vllm import SamplingParams
from vllm.inputs.media.assemble import load_processor
from vllm.models.media.kinds import KINDS

LENGTH = 5
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=1)
RATE = 16000
NO_TEXTS = ("blip_2", "instructblip")
"""Which transformers can't ask without a picture"""
PLAIN_TEXTS = ("paligemma", "mllama", "chameleon", "chameleon_swin", "molmo2", "molmo2_o")
"""Whose processors write tokens of their own into texts without pictures, or refuse those: the tokenizer is asked"""

WHOLE_PROMPTS = ("paligemma", "molmo2", "molmo2_o")
"""Whose tokens see each other across prompts, and so are not cut there"""


@dataclass
class Case:
    """A prompt, and what is said to it."""

    text: str
    media: list[Any]
    """Pictures, or sounds"""
    ids: list[int]
    tokens: list[int]
    logprobs: Tensor

    @property
    def prompt(self) -> dict[str, Any]:
        if not self.media:
            return {"prompt": self.text}
        if isinstance(self.media[0], np.ndarray):
            return {"prompt": self.text, "multi_modal_data": {"audio": [(wave, RATE) for wave in self.media]}}
        return {"prompt": self.text, "multi_modal_data": {"image": self.media}}


def cases_of(name: str, folder: Path) -> list[Case]:
    """Prompts with and without media, of which three differ, and what transformers says to them."""
    config, _ = MAKERS[name](Maker(folder))
    processor = load_processor(folder)
    spec = KINDS.get(config.architectures[0])
    wanted = _wanted(name, "" if spec is not None and spec.prompts == "bare" else _place(name, processor, config))
    if name in NO_TEXTS:
        wanted = [(text, media) for text, media in wanted if media]
    return answered(name, folder, wanted)


def answered(name: str, folder: Path, wanted: list[tuple[str, list[Any]]]) -> list[Case]:
    """What transformers says to texts with media."""
    config, _ = MAKERS[name](Maker(folder))
    processor = load_processor(folder)
    architecture = config.architectures[0]
    model = getattr(transformers, architecture).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    spec = KINDS.get(architecture)
    options = dict(spec.options) if spec is not None else {}
    texts = processor.tokenizer if name in PLAIN_TEXTS else processor
    return [
        _answered(model.eval(), processor if media else texts, text, media, options if media else {})
        for text, media in wanted
    ]


def narrow(name: str) -> int:
    """How many tokens a step computes, where prompts are to be cut."""
    return 40 if name in WHOLE_PROMPTS else 24


def _place(name: str, processor: Any, config: Any) -> str:
    """Return what stands for a medium in a prompt."""
    place: str = processor.audio_token if name in SOUNDS else processor.image_token
    if name.startswith("glm4v"):  # transformers counts on from a picture's last token in another way
        return f"<|begin_of_image|>{place}<|end_of_image|>"
    return f"<|vision_start|>{place}<|vision_end|>" if "vision_start_token_id" in config.to_dict() else place


def _wanted(name: str, place: str) -> list[tuple[str, list[Any]]]:
    if name in SOUNDS:  # one and third are of one length, since some encoders hear what pads the shorter
        one, other, third = wave(20000), wave(9000), wave(20000, 1.2)
    else:
        one, other, third = picture(40, 30, 1), picture(64, 48, 2), picture(32, 32, 3)
    start = [(f"Look: {place} what is it?", [one]), (place or "Well", [other]), ("The tide came in twice a day", [])]
    last = (
        (f"compare {place} with {place} please", [one, third]) if place else ("And what is to be seen here?", [third])
    )
    return [*start, last]


def wave(count: int, rise: float = 1.1) -> Any:
    """So many samples of a sound."""
    return np.sin(np.arange(count) ** rise / 20).astype(np.float32)


@torch.inference_mode()
def _answered(model: Any, processor: Any, text: str, media: list[Any], options: dict[str, Any]) -> Case:
    if media and isinstance(media[0], np.ndarray):
        given = {"audio": media, "sampling_rate": RATE}
    else:
        given = {"images": media} if media else {}
    inputs = dict(processor(text=text, return_tensors="pt", **given, **options))
    inputs = {key: value.float() if torch.is_floating_point(value) else value for key, value in inputs.items()}
    ids = inputs["input_ids"][0].tolist()
    if isinstance(model, transformers.Llama4ForConditionalGeneration):
        model, inputs = _apart(model, inputs)
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
    best = torch.stack([logits[0].float().log_softmax(-1).max() for logits in result.logits])
    return Case(text, media, ids, result.sequences[0, -LENGTH:].tolist(), best)


def _apart(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model's text part, and what it reads: transformers 5.24 fails where it puts llama 4's answer together."""
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    if "pixel_values" in inputs:
        seen = model.multi_modal_projector(model.get_image_features(inputs["pixel_values"]).last_hidden_state)
        embeds[inputs["input_ids"] == model.config.image_token_id] = seen.flatten(0, -2)
    return model.language_model, {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


def check(case: Case, output: Any) -> None:
    """An answer is what transformers says."""
    assert output.prompt_token_ids == case.ids
    chosen = output.outputs[0]
    assert list(chosen.token_ids) == case.tokens
    found = torch.tensor([next(iter(step.values())).logprob for step in chosen.logprobs])
    torch.testing.assert_close(found, case.logprobs, atol=2e-4, rtol=0.0)
