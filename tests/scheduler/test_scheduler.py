"""The scheduler under every way of scheduling, over a worker that notices any confusion of blocks."""

from __future__ import annotations

import pytest

from vllm.errors import RequestError
from vllm.kv_cache.spec import Chunk, Window
from vllm.messages import Pooled
from vllm.scheduler.request import sibling_seed

from .conftest import FULL, Toy
from .fake_worker import VOCAB, candidates, generate

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 16, 64])
def test_a_chunked_prompt_gives_the_same_tokens(budget: int) -> None:
    toy = Toy(max_num_batched_tokens=budget)
    toy.add("a", PROMPT)
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT, 5)
    assert toy.finished["a", 0].finish_reason == "length"


def test_a_decode_and_a_prompt_share_a_step() -> None:
    toy = Toy(max_num_batched_tokens=8)
    toy.add("a", [1, 2], 10)
    toy.step()
    toy.add("b", PROMPT, 3)
    batch = toy.scheduler.schedule()
    assert batch is not None
    assert [(row.start, row.count) for row in batch.rows] == [(2, 1), (0, 7)]


def test_a_second_equal_prompt_is_taken_from_the_cache_but_for_its_last_token() -> None:
    toy = Toy()
    toy.add("a", PROMPT[:8])
    toy.run()
    toy.add("b", PROMPT[:8])
    batch = toy.scheduler.schedule()
    assert batch is not None
    assert (batch.rows[0].start, batch.rows[0].count) == (4, 4), (
        "the whole prompt is cached; its last block is computed again"
    )


def test_a_salt_keeps_requests_apart() -> None:
    toy = Toy()
    toy.add("a", PROMPT, salt="x")
    toy.run()
    toy.add("b", PROMPT, salt="y")
    toy.add("c", PROMPT, salt="x")
    toy.run()
    assert toy.finished["b", 0].num_cached == 0
    assert toy.finished["c", 0].num_cached == 8


def test_prompt_logprobs_compute_the_whole_prompt() -> None:
    toy = Toy()
    toy.add("a", PROMPT)
    toy.run()
    toy.add("b", PROMPT, prompt_logprobs=1)
    toy.run()
    assert toy.finished["b", 0].num_cached == 0


def test_a_preempted_request_resumes_with_the_same_tokens() -> None:
    toy = Toy(num_blocks=9, max_model_len=32)
    for name in "abcd":
        toy.add(name, PROMPT[: 4 + ord(name) % 3], 16)
    toy.run()
    assert toy.scheduler.stats.num_preemptions > 0
    for name in "abcd":
        assert toy.tokens[name, 0] == generate(PROMPT[: 4 + ord(name) % 3], 16)
    assert toy.order[0] == "a", "the first to come is the last to be preempted"


def test_lower_priority_values_run_first() -> None:
    toy = Toy(max_num_seqs=1, policy="priority")
    toy.add("a", PROMPT, priority=5)
    toy.add("b", PROMPT, priority=1)
    toy.add("c", PROMPT, priority=3)
    toy.run()
    assert toy.order == ["b", "c", "a"]


def test_without_the_policy_a_priority_is_refused() -> None:
    toy = Toy(max_num_seqs=1)
    with pytest.raises(RequestError, match="start the engine with scheduling_policy='priority'"):
        toy.add("a", PROMPT, priority=5)
    toy.add("b", PROMPT, priority=0)
    toy.run()
    assert toy.order == ["b"]


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("length", [1, 2, 4, 5, 8, 9, 10])
def test_siblings_share_the_prompt(prefix_caching: bool, length: int) -> None:
    toy = Toy(prefix_caching=prefix_caching)
    toy.add("a", PROMPT[:length], 4, n=4, temperature=1.0, seed=7)
    toy.run()
    for index in range(4):
        assert toy.tokens["a", index] == generate(PROMPT[:length], 4, seed=sibling_seed(7, index))
    assert {event.num_cached for event in toy.finished.values()} == {0}, "sharing is no hit"
    assert toy.computed == length + 3 + 3 * (1 + 3), "the prompt is computed once, its last token by each"


def test_a_sibling_outlives_a_leader_that_ends_with_its_first_token() -> None:
    toy = Toy(max_num_seqs=1)
    toy.add("a", PROMPT, 1, n=3, temperature=1.0)
    toy.run()
    assert [toy.tokens["a", index] for index in range(3)] == [
        generate(PROMPT, 1, seed=sibling_seed(0, index)) for index in range(3)
    ]


def test_an_aborted_leader_leaves_nothing_behind() -> None:
    toy = Toy(max_num_batched_tokens=4)
    toy.add("a", PROMPT, 4, n=3, temperature=1.0)
    toy.step()
    toy.scheduler.abort("a")
    toy.scheduler.check()
    assert not toy.scheduler.has_work


def test_a_leader_stopped_from_outside_frees_its_siblings() -> None:
    toy = Toy(max_num_batched_tokens=4)
    toy.add("a", PROMPT, 4, n=3, temperature=1.0)
    toy.step()
    toy.scheduler.finish("a", 0)
    toy.run()
    assert toy.tokens["a", 1] == generate(PROMPT, 4, seed=sibling_seed(0, 1))


def test_a_window_frees_the_blocks_behind_it() -> None:
    window = Window(1, 1, 1, size=6)
    toy = Toy(specs=(FULL, window), num_blocks=[20, 8], max_num_batched_tokens=8)
    toy.add("a", PROMPT * 3, 20)
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT * 3, 20)


@pytest.mark.parametrize("budget", [3, 8, 13])
def test_a_chunk_frees_the_blocks_behind_it_and_is_found_again(budget: int) -> None:
    chunk = Chunk(1, 1, 1, size=8)
    need = chunk.blocks_at_most(50, budget, 4)
    toy = Toy(specs=(FULL, chunk), num_blocks=[40, need + 1], max_num_batched_tokens=budget)
    toy.add("a", PROMPT * 3, 20)
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT * 3, 20)
    toy = Toy(specs=(FULL, chunk), num_blocks=[40, 20], max_num_batched_tokens=budget)
    toy.add("a", PROMPT * 2 + [1, 2], 2)
    toy.run()
    for name, tail in (("b", [3, 4]), ("c", [5])):
        toy.add(name, PROMPT * 2 + tail, 8)
    toy.run()
    assert toy.finished["b", 0].num_cached == 20
    assert toy.tokens["b", 0] == generate(PROMPT * 2 + [3, 4], 8)
    assert toy.tokens["c", 0] == generate(PROMPT * 2 + [5], 8)


def test_a_window_group_hits_the_prefix_when_its_last_blocks_are_there() -> None:
    toy = Toy(specs=(FULL, Window(1, 1, 1, size=6)), num_blocks=[40, 20], max_num_batched_tokens=8)
    toy.add("a", PROMPT * 2 + [1, 2], 2)
    toy.run()
    toy.add("b", PROMPT * 2 + [3, 4], 2)
    toy.run()
    assert toy.finished["b", 0].num_cached == 20
    assert toy.tokens["b", 0] == generate(PROMPT * 2 + [3, 4], 2)


def test_a_cache_for_one_sequence_admits_it_on_top_of_its_cached_prefix() -> None:
    toy = Toy(specs=(FULL, Window(1, 1, 1, size=6)), num_blocks=[17, 5], max_num_batched_tokens=4)
    toy.add("a", PROMPT * 2, 2)
    toy.run()
    toy.add("b", PROMPT * 5, 2)
    toy.run()
    assert toy.finished["b", 0].num_cached == 20
    assert toy.tokens["b", 0] == generate(PROMPT * 5, 2)


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_a_prefix_hit_is_let_in_when_the_window_has_blocks_for_one_sequence_only(num_outputs: int) -> None:
    window = Window(kv_heads=1, head_dim=1, value_dim=1, size=6)
    need = window.blocks_at_most(60, 8, 4)
    toy = Toy([40, need + 1], specs=(FULL, window), max_num_batched_tokens=8)
    prompt = list(range(10, 30))
    toy.add("a", prompt, max_tokens=2)
    toy.run()
    toy.add("b", [*prompt, *range(30, 60)], max_tokens=2, n=num_outputs)
    toy.run()
    assert toy.finished["b", 0].num_cached == len(prompt)


def test_without_chunks_a_prompt_waits_for_a_step_that_holds_it() -> None:
    toy = Toy(chunked_prefill=False, max_num_batched_tokens=64)
    for name in "abc":
        toy.add(name, PROMPT * 3, 3)
    batch = toy.scheduler.schedule()
    assert batch is not None
    assert [row.count for row in batch.rows] == [30, 30]


def test_a_request_that_can_never_fit_is_refused() -> None:
    toy = Toy(num_blocks=5)
    with pytest.raises(RequestError, match="grow to 25 tokens"):
        toy.add("a", PROMPT * 2, 5)


def test_an_end_token_ends_the_sequence_unless_ignored() -> None:
    reference = generate(PROMPT, 30, end=3)
    toy = Toy()
    toy.add("a", PROMPT, 30, end=3)
    toy.add("b", PROMPT, 30, end=3, ignore_eos=True)
    toy.add("c", PROMPT, 30, stop_token_ids=[3])
    toy.run()
    assert reference[-1] == 3
    assert toy.tokens["a", 0] == reference and toy.finished["a", 0].stop_reason is None
    assert len(toy.tokens["b", 0]) == 30
    assert toy.tokens["c", 0] == reference and toy.finished["c", 0].stop_reason == 3


def test_the_context_length_ends_the_sequence() -> None:
    toy = Toy(max_model_len=16)
    toy.add("a", PROMPT, None)  # type: ignore[arg-type]
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT, 6)
    assert toy.finished["a", 0].finish_reason == "length"


# ── beams ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def search(prompt: list[int], width: int, max_tokens: int, end: int) -> list[tuple[list[int], float]]:
    """Beam search over whole sequences, without requests, slots or blocks."""
    live, finished = [(0.0, list(prompt))], []
    for length in range(1, max_tokens + 1):
        options = [
            (total + logprob, [*tokens, token])
            for total, tokens in live
            for token, logprob in candidates(tokens, VOCAB)
        ]
        options = sorted(options, key=lambda option: -option[0])[: 2 * width]
        ends = [tokens[-1] == end or length == max_tokens for _, tokens in options]
        finished += [
            (total / length, tokens)
            for (total, tokens), is_end in zip(options[:width], ends[:width], strict=True)
            if is_end
        ]
        finished = sorted(finished, key=lambda option: -option[0])[:width]
        live = [option for option, is_end in zip(options, ends, strict=True) if not is_end][:width]
        if not live or (len(finished) == width and live[0][0] / length <= finished[-1][0]):
            break
    return [(tokens[len(prompt) :], score) for score, tokens in finished]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("num_blocks", [64, 10])
@pytest.mark.parametrize("max_num_seqs", [8, 2])
def test_beams_equal_a_search_over_whole_sequences(width: int, num_blocks: int, max_num_seqs: int) -> None:
    toy = Toy(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=8, max_model_len=32)
    toy.add_beams("a", PROMPT, width, 12)
    toy.add("b", PROMPT[:3], 12)
    toy.run()
    beams = [(beam.token_ids, pytest.approx(beam.score)) for beam in toy.finished["a", 0].beams]
    assert beams == search(PROMPT, width, 12, end=3)
    assert toy.tokens["b", 0] == generate(PROMPT[:3], 12)


def test_a_beam_step_copies_one_block_per_new_beam_at_most() -> None:
    toy = Toy(max_num_seqs=8)
    toy.add_beams("a", PROMPT, 4, 12)
    while toy.scheduler.has_work:
        batch = toy.scheduler.schedule()
        assert batch is not None
        assert len(batch.copies) <= 3
        toy.scheduler.account(batch, toy.worker.execute(batch))
        toy.scheduler.check()


def test_aborting_a_beam_search_frees_all_beams() -> None:
    toy = Toy(max_num_seqs=8)
    toy.add_beams("a", PROMPT, 4, 12)
    for _ in range(5):
        toy.step()
    toy.scheduler.abort("a")
    toy.scheduler.check()
    assert not toy.scheduler.has_work


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("num_blocks", [[9, 9], [16, 7], [16, 9]])
def test_beams_fork_under_windows_of_every_size_when_blocks_are_short(size: int, num_blocks: list[int]) -> None:
    toy = Toy(
        num_blocks, specs=(FULL, Window(1, 1, 1, size=size)), max_num_seqs=8, max_model_len=32, max_num_batched_tokens=8
    )
    toy.add_beams("a", PROMPT, 4, 12)
    toy.add("b", PROMPT[:3], 12, n=3, temperature=1.0)
    toy.run()
    beams = [(beam.token_ids, pytest.approx(beam.score)) for beam in toy.finished["a", 0].beams]
    assert beams == search(PROMPT, 4, 12, end=3)
    for index in range(3):
        assert toy.tokens["b", index] == generate(PROMPT[:3], 12, seed=sibling_seed(0, index))


def test_a_step_that_fails_costs_only_the_row_at_fault() -> None:
    toy = Toy(max_num_seqs=8, max_num_batched_tokens=64)
    seeds = {f"r{number}": number for number in range(8)}
    for name, seed in seeds.items():
        toy.add(name, [1, 2, 3, seed], 6, temperature=1.0, seed=seed)
    for _ in range(3):
        toy.step()
    toy.fault = lambda batch: any(toy.worker.slots[row.slot].sequence.seed == 5 for row in batch.rows)
    toy.run()
    assert {name for (name, _), event in toy.finished.items() if event.error == "it broke"} == {"r5"}
    expected = {(name, 0): generate([1, 2, 3, seed], 6, seed) for name, seed in seeds.items()}
    assert {key: tokens for key, tokens in toy.tokens.items() if key != ("r5", 0)} == {
        key: tokens for key, tokens in expected.items() if key != ("r5", 0)
    }
    assert toy.tokens["r5", 0] == expected["r5", 0][:3], "what it had is kept"


def test_a_fault_that_passes_costs_nothing_where_there_was_company() -> None:
    toy = Toy()
    toy.add("a", [1, 2, 3], 5, seed=1)
    toy.add("b", [4, 5], 5, seed=2)
    toy.step()
    faults = iter([True])
    toy.fault = lambda batch: next(faults, False)
    toy.run()
    assert toy.tokens == {("a", 0): generate([1, 2, 3], 5, 1), ("b", 0): generate([4, 5], 5, 2)}


def test_who_fails_beside_one_that_has_been_aborted_is_not_blamed() -> None:
    toy = Toy(depth=2)
    toy.add("a", PROMPT[:4], 5, seed=1)
    toy.add("b", PROMPT[:3], 5, seed=2)
    toy.fault = lambda batch: any(toy.worker.slots[row.slot].sequence.seed == 2 for row in batch.rows)
    for _ in range(2):  # both are under way
        toy.compute(toy.scheduler.schedule() or pytest.fail("there is work"))
    toy.scheduler.abort("b")
    toy.run()
    assert toy.finished["a", 0].error is None
    assert toy.tokens["a", 0] == generate(PROMPT[:4], 5, seed=1)


def test_who_is_aborted_while_it_is_tried_alone_holds_nobody_up() -> None:
    toy = Toy(20)
    for name in "ab":
        toy.add(name, PROMPT[:4])
    toy.fault = lambda batch: True
    toy.step()
    toy.fault = lambda batch: False
    toy.scheduler.abort("b")  # of the two halves, its own would be tried first
    toy.run()
    assert toy.tokens["a", 0] == generate(PROMPT[:4], 5)


def test_a_pooled_request_ends_with_its_prompt_and_keeps_nothing() -> None:
    toy = Toy(20, max_num_batched_tokens=4)
    toy.add_pooled("a", PROMPT)
    toy.add("b", PROMPT[:3])
    toy.run()
    assert toy.finished["a", 0].pooled == Pooled((1,), bytes([sum(PROMPT) % 256]))
    assert toy.tokens["a", 0] == [] and toy.tokens["b", 0] == generate(PROMPT[:3], 5)
    assert toy.cache.usage == 0
