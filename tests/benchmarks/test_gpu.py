"""What the benchmark on a GPU computes from its record."""

from __future__ import annotations

import pytest

from benchmarks.gpu import config_of, decode_bytes, lines, mixed_load, prefill_operations, sizes_of


def test_an_8b_shape_costs_what_its_weights_and_its_cache_are() -> None:
    sizes = sizes_of("llama-3.1-8b")
    embedding = config_of("llama-3.1-8b")["vocab_size"] * 4096
    assert sizes["dense"] + sizes["expert"] + sizes["head"] + embedding == pytest.approx(8.03e9, rel=1e-3)
    assert decode_bytes("llama-3.1-8b", 1, 0) == pytest.approx(15.0e9, rel=1e-2)
    assert decode_bytes("llama-3.1-8b", 2, 1000) - decode_bytes("llama-3.1-8b", 1, 1000) == 1000 * 131072
    assert prefill_operations("llama-3.1-8b", 8192) == pytest.approx(2 * 6.98e9 * 8192 + 17.6e12, rel=1e-2)


def test_a_mixture_reads_the_experts_that_somebody_chooses() -> None:
    one, many = (decode_bytes("qwen3-30b-a3b", batch, 0) for batch in (1, 1000))
    assert one == pytest.approx(2 * 3.0e9, rel=0.15) and many == pytest.approx(2 * 30.2e9, rel=0.03)


def test_the_page_has_shares_and_ratios() -> None:
    ours = {"start": 8.0, "decode": {"1": [0.005, 1064]}, "prefill": 0.25, "mixed": 6.0}
    record = {
        "made": "2026-01-01 00:00",
        "command": "python -m benchmarks.gpu",
        "device": {"name": "G", "torch": "2", "copy": 4e12, "read": 4e12, "matrix": 8e14},
        "check": {"llama": [True], "gemma2": [False]},
        "shapes": {
            "llama-3.1-8b": {
                "ours": ours,
                "transformers": {"decode": {"1": 0.06}, "mixed": 60.0},
                "several": {"2": ours | {"decode": {"1": [0.0025, 1064]}}},
            },
            "qwen2.5-0.5b": {"ours": {"failed": "exit status 1"}},
        },
    }
    page = "\n".join(lines(record))
    assert "CPU for llama; not for gemma2." in page
    assert "| 5.00 ms a step, 200 tokens/s | 76% of the bandwidth | 60.00 ms | 12.0× |" in page
    assert "| 10.0× |" in page and "2.00× as fast" in page and "qwen2.5-0.5b: exit status 1" in page
    assert len(mixed_load()) == 512
