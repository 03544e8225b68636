"""Workloads are the same work in every round, in other words each time."""

from __future__ import annotations

import pytest

from benchmarks.workloads import IDS, Workload, workloads

SIZES = {"W1": (1, 128, 128), "W2": (32, 32 * 128, 32 * 64), "W3": (1, 2048, 16), "W4": (16, 16 * 1056, 16 * 32)}


def lengths(workload: Workload) -> list[tuple[int, int]]:
    return [(len(request.prompt), request.num_output) for request in workload.requests]


@pytest.mark.parametrize("name", SIZES)
def test_workloads_have_the_sizes_that_their_titles_say(name: str) -> None:
    workload = workloads()[name]
    assert (len(workload.requests), workload.num_prompt, workload.num_output) == SIZES[name]


def test_the_mix_stays_within_its_bounds() -> None:
    sizes = lengths(workloads()["W5"])
    assert len(sizes) == 64
    assert all(32 <= prompt <= 512 and 16 <= output <= 128 for prompt, output in sizes)
    assert len(set(sizes)) > 32


@pytest.mark.parametrize("quick", [False, True])
def test_rounds_have_the_same_lengths_and_other_ids(quick: bool) -> None:
    first, second = workloads(quick, 0), workloads(quick, 1)
    for name, workload in first.items():
        assert lengths(workload) == lengths(second[name])
        assert workload.requests[0].prompt[:16] != second[name].requests[0].prompt[:16]
    assert first == workloads(quick, 0)


def test_prompts_share_what_they_are_said_to_share_and_no_more() -> None:
    workload = workloads()["W4"]
    prompts = [request.prompt for request in workload.requests]
    assert len({tuple(prompt[: workload.shared]) for prompt in prompts}) == 1
    assert len({tuple(prompt[workload.shared :]) for prompt in prompts}) == len(prompts)


def test_ids_are_ordinary_tokens() -> None:
    for workload in workloads().values():
        assert all(token in IDS for request in workload.requests for token in request.prompt)
