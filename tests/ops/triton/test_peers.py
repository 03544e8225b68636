"""Sums over each other's memory: two processes, each with its kernels in the interpreter, over files that both have mapped."""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from vllm.ops.norms import rms_norm
from vllm.ops.parallel import NextNorm
from vllm.ops.triton.peers import Peers

WIDTH = 24
DTYPES = [torch.float32, torch.float16]


def steps_of(dtype: torch.dtype) -> list[torch.Tensor]:
    """Return what both ranks have in each step, of changing numbers of rows, zeros of both signs among them.  [2, T, D]"""
    rng = random.Random(3)
    torch.manual_seed(3)
    steps = [torch.randn(2, rng.choice([1, 2, 3, 5]), WIDTH).to(dtype) for _ in range(14)]
    for step in steps:
        step[torch.rand(step.shape) < 0.3] = -0.0
    steps[4].zero_()
    return steps


def weight_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.linspace(-1, 2, WIDTH).to(dtype)


def take_part(rank: int, size: int, folder: Path, dtype: torch.dtype, end: Connection) -> None:
    torch.set_num_threads(1)
    count = Peers.num_bytes(size)
    memories = [
        torch.from_file(str(folder / str(other)), shared=True, size=count, dtype=torch.uint8) for other in range(size)
    ]
    peers = Peers(rank, [memory.untyped_storage() for memory in memories], memories[rank])
    end.send("ready")
    end.recv()
    found = []
    for number, step in enumerate(steps_of(dtype)):
        mine = step[rank]
        if number % 5 == 3:  # part of longer rows
            mine = torch.cat((mine, mine), dim=1)[:, :WIDTH]
        assert peers.takes(mine)
        if number % 3 == 0:
            found.append(peers.add_up(mine))
            continue
        norm = NextNorm(weight_of(dtype), 1e-5, float(number % 2))
        found.append(peers.add_up(mine, norm))
        normed = norm.take(found[-1])
        assert normed is not None and norm.take(found[-1]) is None
        torch.testing.assert_close(normed, rms_norm(found[-1], norm.weight, 1e-5, norm.offset), rtol=2e-3, atol=2e-3)
    assert not peers.takes(found[0][:, 2:]), "rows of another width"
    end.send([each.numpy() for each in found])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_add_up_what_they_have(tmp_path: Path, dtype: torch.dtype) -> None:
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for rank in range(2):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=take_part, args=(rank, 2, tmp_path, dtype, theirs), daemon=True))
        processes[-1].start()
        ends.append(ours)
    for end in ends:
        assert end.recv() == "ready"
    for end in ends:
        end.send("go")
    found = []
    for end in ends:
        assert end.poll(60), "a rank waits for ever"
        found.append([torch.from_numpy(each) for each in end.recv()])
    for process in processes:
        process.join(10)
    for step, *results in zip(steps_of(dtype), *found, strict=True):
        wanted = (step[0].float() + step[1].float()).to(dtype)
        for result in results:
            torch.testing.assert_close(result, wanted, rtol=0, atol=0)


def test_who_is_abandoned_waits_no_longer() -> None:
    memories = [torch.empty(Peers.num_bytes(2), dtype=torch.uint8) for _ in range(2)]
    peers = Peers(0, [memory.untyped_storage() for memory in memories], memories[0])
    peers._abandoned.fill_(1)
    x = torch.ones(2, WIDTH)
    torch.testing.assert_close(peers.add_up(x), x)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((600, 8), torch.float32), ((4, 5000), torch.float32), ((4, 8), torch.int32), ((0, 8), torch.float32)],
)
def test_what_is_not_for_it_goes_the_other_way(shape: tuple[int, int], dtype: torch.dtype) -> None:
    memory = torch.empty(Peers.num_bytes(2), dtype=torch.uint8)
    assert not Peers(0, [memory.untyped_storage()] * 2, memory).takes(torch.zeros(shape, dtype=dtype))
