"""Rows to sample from, and a sampler run over them; shared by the tests of this room."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch

from vllm.sampling.device import DeviceSampler
from vllm.sampling.sampler import Sampled, Sampler
from vllm.sampling_params import SamplingParams


@dataclass
class Row:
    """One sequence and the logits for its next token."""

    logits: torch.Tensor
    params: SamplingParams
    prompt: list[int] = field(default_factory=lambda: [1, 2])
    output: list[int] = field(default_factory=list)
    seed: int = 0
    eos: tuple[int, ...] = ()
    bad_words: list[list[int]] = field(default_factory=list)


def run_rows(rows: list[Row], mode: str = "raw_logprobs", kind: type[Sampler] = Sampler) -> Sampled:
    """Sample all rows in one step, in slots that are not in the order of the rows."""
    sampler = kind(len(rows) + 3, len(rows[0].logits), max_logprobs=-1, logprobs_mode=mode)
    lengths = np.array([len(row.prompt) + len(row.output) for row in rows])
    slots = len(rows) + 1 - np.arange(len(rows))
    table = torch.full((len(rows) + 3, int(lengths.max()) + 5), 7)
    for row, slot, length in zip(rows, slots.tolist(), lengths.tolist(), strict=True):
        table[slot, :length] = torch.tensor(row.prompt + row.output)
        sampler.admit(
            slot,
            row.params,
            seed=row.seed,
            eos_token_ids=row.eos,
            bad_words_ids=row.bad_words,
            num_prompt=len(row.prompt),
        )
    choice = sampler.sample(torch.stack([row.logits for row in rows]), slots.tolist(), lengths.tolist(), table)
    return choice.result()


@pytest.fixture(scope="session")
def make_row() -> Callable[..., Row]:
    return Row


@pytest.fixture(scope="session", params=[Sampler, DeviceSampler])
def sample_rows(request: pytest.FixtureRequest) -> Callable[..., Sampled]:
    if request.param is DeviceSampler:
        pytest.importorskip("triton")
    return partial(run_rows, kind=request.param)


@pytest.fixture(scope="session")
def make_logits() -> Callable[..., torch.Tensor]:
    """Return logits with many ties, as those of a bfloat16 model.  (seed, rows, vocabulary) -> [rows, vocabulary]"""

    def make(seed: int, num_rows: int, vocab_size: int) -> torch.Tensor:
        noise = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed))
        return (noise * 3).bfloat16().float()

    return make
