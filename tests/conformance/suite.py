"""What is asked of an architecture, and how it is found out.

A tiny checkpoint by transformers is loaded by the engine, and prompts of different lengths are continued in five ways: each
alone, all in one batch, cut into chunks of 16 tokens, after a hit in the prefix cache, and with a request preempted in the
middle.  Each time the tokens must be those of transformers' `generate`, and the logits behind them equal.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.conformance import era, published
from tests.conformance.tiny import VOCAB, save_tiny

WAYS = ("alone", "batch", "chunks", "prefix", "preempted")
LENGTHS = (5, 1, 23, 12, 37)
NUM_NEW = 6
TOLERANCE = 2e-3
"""Of a logit, relative to the greatest in size.  Most architectures are equal to 1e-5; float32 sums in other orders add up."""


@dataclass
class Outcome:
    """What was found of an architecture."""

    architecture: str
    route: str = ""
    """family, or transformers"""
    ways: dict[str, bool] = field(default_factory=dict)
    worst: float = 0.0
    """The largest difference of logits"""
    reason: str = ""
    """Why something is missing"""

    @property
    def passed(self) -> bool:
        return all(self.ways.get(way, False) for way in WAYS)


@dataclass(frozen=True)
class Expected:
    """What transformers says to a prompt."""

    prompt: list[int]
    tokens: list[int]
    logits: torch.Tensor


def examine(model_type: str, impl: str = "auto", device: str = "cpu") -> Outcome:
    """Find out whether the engine computes a model type as transformers does, or an architecture that is in a format which
    transformers doesn't know as the model that it was made from, or as its mathematics are written down."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome = Outcome(model_type)
        try:
            if model_type in era.FORMATS:
                reference = era.save(model_type, folder)
            elif model_type in published.MODELS:
                reference = published.save(model_type, folder)
            else:
                reference = save_tiny(model_type, folder)
                outcome.architecture = type(reference).__name__
            expected = [_expected(reference, prompt) for prompt in _prompts()]
        except Exception as error:
            outcome.reason = f"transformers: {_line(error)}"
            return outcome
        del reference
        try:
            _try_ways(folder, {"model_impl": impl, "device": device}, expected, outcome)
        except Exception as error:
            outcome.reason = _line(error)
        return outcome


def _try_ways(folder: Path, how: dict[str, Any], expected: list[Expected], outcome: Outcome) -> None:
    with _engine(folder, **how) as llm:
        model = llm.llm_engine.core.executor.runner.hidden.model
        outcome.route = "family" if not model.is_complete else "transformers" if model.remembers else "packed"
        outcome.ways["alone"] = all(_agrees(outcome, [one], _run(llm, [one])) for one in expected)
        outcome.ways["batch"] = _agrees(outcome, expected, _run(llm, expected))
    with _engine(folder, **how, enable_prefix_caching=True) as llm:
        longest = expected[-1]
        _run(llm, [longest])
        found = _run(llm, [longest, *expected])
        hit = model.remembers or found[0].num_cached_tokens > 0
        outcome.ways["prefix"] = hit and _agrees(outcome, [longest, *expected], found)
    with _engine(folder, **how, max_num_batched_tokens=16, max_num_seqs=4) as llm:
        outcome.ways["chunks"] = _agrees(outcome, expected, _run(llm, expected))
        outcome.ways["preempted"] = _agrees(outcome, expected, _run(llm, expected, preempt_at=5))


@contextmanager
def _engine(folder: Path, **options: Any) -> Iterator[Any]:
    from vllm import LLM

    settings = {"enable_prefix_caching": False, "block_size": 8, "max_model_len": 64} | options
    if settings["device"] == "cuda":  # several are examined at a time
        settings["kv_cache_memory_bytes"] = 1 << 26
    llm = LLM(
        str(folder), dtype="float32", skip_tokenizer_init=True, max_logprobs=-1, logprobs_mode="raw_logits", **settings
    )
    try:
        yield llm
    finally:
        llm.llm_engine.close()


def _run(llm: Any, expected: list[Expected], preempt_at: int | None = None) -> list[Any]:
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=NUM_NEW, ignore_eos=True, logprobs=-1)
    engine, outputs = llm.llm_engine, {}
    for index, one in enumerate(expected):
        engine.add_request(str(index), {"prompt_token_ids": one.prompt}, params)
    step = 0
    while engine.has_work:
        if step == preempt_at and engine.scheduler.running:
            engine.scheduler._preempt(engine.scheduler.running[-1])
        for output in engine.step():
            outputs[output.request_id] = output
        step += 1
    return [outputs[str(index)] for index in range(len(expected))]


def _agrees(outcome: Outcome, expected: list[Expected], found: list[Any]) -> bool:
    """Whether tokens are the same, but for those that transformers itself finds equally good, and logits equal."""
    good = True
    for one, output in zip(expected, found, strict=True):
        completion = output.outputs[0]
        for index, (token, logits) in enumerate(zip(one.tokens, one.logits, strict=True)):
            scale = float(logits.abs().max())
            values = torch.full((VOCAB,), torch.nan)
            for candidate, entry in completion.logprobs[index].items():
                values[candidate] = entry.logprob
            worst = float((values - logits).abs().max()) / scale
            outcome.worst = max(outcome.worst, worst)
            good &= worst < TOLERANCE
            if completion.token_ids[index] != token:
                best = logits.topk(2).values
                good &= float(best[0] - best[1]) < 1e-3 * scale
                break  # what follows is another text
    return good


_KEEPING = ("recurrent_gemma",)
"""Model types whose modules keep the state of the last text until they are called without a cache."""


@torch.no_grad()
def _expected(model: Any, prompt: list[int]) -> Expected:
    if isinstance(model, published.Written):
        tokens, logits = model.go_on(prompt, NUM_NEW)
        return Expected(prompt, tokens, logits[:, :VOCAB])
    ids = torch.tensor([prompt])
    if model.config.model_type in _KEEPING:
        model(ids, use_cache=False)
    found = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False,
        output_logits=True, return_dict_in_generate=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    logits = torch.stack([step[0].float() for step in found.logits])
    return Expected(prompt, found.sequences[0, len(prompt) :].tolist(), logits[:, :VOCAB])


def _prompts() -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 300) for _ in range(length)] for length in LENGTHS]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"[:200]
