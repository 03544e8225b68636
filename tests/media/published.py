"""Tiny checkpoints as models were published that transformers has no class of, and what their mathematics, written plainly, say."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints import spread
from tests.media.cases import GREEDY, LENGTH, RATE, Case, check
from tests.media.test_models import make
from tests.media.test_serving import PLAIN_TEMPLATE
from tests.media.tiny import Maker
from vllm import LLM
from vllm.models.media.tower import Tower

See = Callable[..., tuple[str, Tensor]]
"""From a medium, and its number where that counts, to the text that takes its place, and the embeddings of that text's tokens that are the medium's"""


@dataclass
class Published:
    """A checkpoint, and who can say what it says."""

    folder: Path
    tokenizer: Any
    text: Any
    """transformers' model of its text part"""
    mark: str
    """What stands for a medium in a prompt"""
    tokens: tuple[int, ...]
    """What stands for embeddings"""
    see: See
    see_several: See | None = None
    """For a medium that is not the only one of its prompt, where that matters"""
    is_apart: bool = False
    """Pieces of text are tokenized each by itself"""
    positions: Callable[[list[int]], list[int]] | None = None
    """From a prompt's tokens to their positions, where they aren't simply counted"""
    counts: bool = False
    """What stands for a medium has its number"""

    @torch.inference_mode()
    def case(self, text: str, media: Sequence[Any]) -> Case:
        """Return a prompt, in which marks stand for the media, and what is said to it."""
        before, *others = text.split(self.mark)
        assert len(others) == len(media)
        see = self.see_several if self.see_several is not None and len(media) > 1 else self.see
        seen = [see(one, index) if self.counts else see(one) for index, one in enumerate(media)]
        parts = [
            before,
            *(part for (stand_in, _), after in zip(seen, others, strict=True) for part in (stand_in, after)),
        ]
        ids = torch.tensor([self.ids(parts) if self.is_apart else self.ids(["".join(parts)])])
        embeds = self.text.get_input_embeddings()(ids.clamp(max=self.text.config.vocab_size - 1))
        if seen:
            embeds[torch.isin(ids, torch.tensor(self.tokens))] = torch.cat([embeddings for _, embeddings in seen])
        where = None if self.positions is None else self.positions(ids[0].tolist())
        return Case(text, list(media), ids[0].tolist(), *said(self.text, embeds, where))

    def ids(self, parts: Sequence[str]) -> list[int]:
        """Return the tokens of texts, and of what stands for media between them."""
        encoded = [self.tokenizer(part, add_special_tokens=not index % 2) for index, part in enumerate(parts)]
        return [token for each in encoded for token in each["input_ids"]]


def said(model: Any, embeds: Tensor, positions: list[int] | None = None) -> tuple[list[int], Tensor]:
    """Return the first tokens that a model says to embeddings, and their log-probabilities."""
    if positions is not None:
        return _said_at(model, embeds, list(positions))
    result = model.generate(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.int64), max_new_tokens=LENGTH,
        do_sample=False, output_logits=True, return_dict_in_generate=True, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    best = torch.stack([logits[0].float().log_softmax(-1).max() for logits in result.logits])
    return result.sequences[0, -LENGTH:].tolist(), best


def _said_at(model: Any, embeds: Tensor, positions: list[int]) -> tuple[list[int], Tensor]:
    """Ask a model for one token after the other, with all before them."""
    tokens, best = [], []
    for _ in range(LENGTH):
        # without a mask positions that do not rise would begin another sequence
        mask, where = torch.ones(embeds.shape[:2], dtype=torch.int64), torch.tensor([positions])
        logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=where, use_cache=False).logits[0, -1]
        tokens.append(int(logits.argmax()))
        best.append(logits.float().log_softmax(-1).max())
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1)
        positions.append(positions[-1] + 1)
    return tokens, torch.stack(best)


def text_part(maker: Maker, model_type: str, **changes: Any) -> Any:
    """Return a small decoder of transformers with random weights."""
    config = transformers.AutoConfig.for_model(**maker.text(model_type, **changes))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        return spread(transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager"))


def drawn(module: Any, size: float = 1.0) -> Any:
    """Give a module random weights; a smaller `size` for a deep or a wide one, in which roundings would grow."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        return scaled(spread(module).requires_grad_(False), size)


def scaled(module: Any, size: float) -> Any:
    """Make all matrices of a module smaller."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= size if parameter.ndim > 1 else 1.0
    return module


def written(
    folder: Path,
    tokenizer: Any,
    config: Mapping[str, Any],
    text: Any,
    names: Mapping[str, str],
    tower: Mapping[str, Tensor],
) -> Path:
    """Write a checkpoint, without a tokenizer where one is there.  `names`: how transformers' names of the text part begin → how they begin here."""
    folder.mkdir(exist_ok=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    found = dict(tower)
    for name, tensor in text.state_dict().items():
        begin = next((begin for begin in names if name.startswith(begin)), None)
        if begin is not None and not (name == "lm_head.weight" and text.config.tie_word_embeddings):
            found[names[begin] + name.removeprefix(begin)] = tensor
    save_file({name: tensor.contiguous().clone() for name, tensor in found.items()}, folder / "model.safetensors")
    return folder


def says_the_same(
    published: Published, asked: Sequence[tuple[str, Sequence[Any]]], chat_begins: str = "", **options: Any
) -> None:
    """Prompts are answered as they should be: alone, from what is cached, together, and cut within media.

    The last prompt has two media, of which a prompt before has had one, unless they are seen otherwise in company.
    """
    cases = [published.case(text, media) for text, media in asked]
    encoded: list[bytes] = []
    encode = Tower.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tower, "encode", lambda self, media: encoded.append(media.key) or encode(self, media))
        with make(published.folder, **options) as llm:
            for case in cases:
                check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
            distinct = len(set(encoded))
            assert (
                len(encoded) == distinct == sum(len(case.media) for case in cases) - (published.see_several is None)
            ), "a medium was seen twice"
            again = llm.generate(cases[-1].prompt, GREEDY, use_tqdm=False)[0]
            check(cases[-1], again)
            assert again.num_cached_tokens and len(encoded) == distinct
            begin = chat_begins or f"user: {published.mark}\n"
            check(*_chat(llm, published, begin, cases[0].media[0]))
    with make(published.folder, max_num_batched_tokens=24, **options) as llm:
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)


def _chat(llm: LLM, published: Published, begin: str, medium: Any) -> tuple[Case, Any]:
    """Return a conversation about a medium as a prompt, and what is said in it."""
    is_sound = isinstance(medium, np.ndarray)
    part = {"type": "audio", "audio": (medium, RATE)} if is_sound else {"type": "image_pil", "image_pil": medium}
    message = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    (output,) = llm.chat([message], GREEDY, use_tqdm=False, chat_template=PLAIN_TEMPLATE)
    return published.case(f"{begin}What is it?\nassistant: ", [medium]), output
