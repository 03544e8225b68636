"""A stored record becomes a page and a plot; every figure on them follows from it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.plot import draw
from benchmarks.summary import Summary


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of all tables under a heading."""
    _, _, section = page.partition(f"## {heading}")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def page(record: dict[str, Any]) -> str:
    return report.render(Summary(record), {})


def test_medians_ratios_and_shares_stand_in_the_workloads_table(page: str) -> None:
    head, ours, transformers, llamacpp = rows(page, "W1")[:4]
    assert head == ["engine", "", "first token, ms", "lowest-highest", "of the floor", "ours-bf16 is"]
    # 128 tokens take 0.2105 s at 440 GFLOP/s: 0.84 and 0.42 of it in the two rounds.
    assert ours == ["this engine", "bf16", "375", "250-500", "0.63", ""]
    assert transformers == ["transformers", "bf16", "1250", "500-2000", "0.26", "**3.00×**"]
    assert llamacpp == ["llama.cpp Q8_0", "int8", "375", "250-500", "0.32", "1.00×"]


def test_each_rounds_floor_is_that_of_its_own_roof(record: dict[str, Any]) -> None:
    # Decoding took twice as long in the round in which reading did: the share is the same in both.
    found = Summary(record).series("W1", "decode_rate", "ours-bf16")
    assert found is not None
    assert found.values[0] == pytest.approx(2 * found.values[1])
    assert found.values[0] / found.floors[0] == pytest.approx(found.values[1] / found.floors[1])


def test_goals_are_judged_where_both_sides_were_measured(page: str, record: dict[str, Any]) -> None:
    judged = {row[0]: row[1:] for row in rows(page, "Goals")[1:]}
    assert judged["start to first token: ours-bf16"] == ["at most 3.0 s", "2.60 s", "reached"]
    assert judged["W1 decode: ours-bf16, share of the floor"][2].startswith("**missed**: ")
    assert not any("vllm" in title for title in judged)
    record["memory"]["ours-bf16"]["rss"] = 1_700_000_000
    row = "| peak memory: ours-bf16 | at most 1.6 GB | 1.70 GB | **missed** |"
    assert row not in page
    assert row in report.render(Summary(record), {})


def test_start_and_memory_have_a_row_per_engine_that_was_measured(page: str) -> None:
    assert rows(page, "Start and memory")[1:] == [["this engine", "bf16", "2.60", "1.50", "1.40", "1.30"]]


def test_quality_is_shown_where_it_was_measured(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record))
    assert "## Quality" not in report.write(tmp_path)
    measured = {"float32": {"perplexity": 28.5}, "int8": {"perplexity": 28.75, "error": 0.0123, "same": 0.875}}
    (tmp_path / "quality.json").write_text(json.dumps(measured))
    assert rows(report.write(tmp_path), "Quality")[1:] == [
        ["float32", "28.500", "", ""],
        ["int8", "28.750", "1.23 %", "88 %"],
    ]


def test_the_servers_cost_is_shown_as_medians_and_the_median_of_ratios(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record))
    measured = {
        "ours": {"requests": [3000.0, 3300.0, 3100.0], "single": [0.5, 0.4, 0.4]},
        "vllm": {"requests": [600.0, 600.0, 620.0], "single": [2.0, 2.0, 2.4]},
    }
    (tmp_path / "server.json").write_text(json.dumps(measured))
    assert [row[1:] for row in rows(report.write(tmp_path), "The server's own cost")[1:]] == [
        ["3,100", "600", "5.0×"],
        ["", "", ""],
        ["0.40", "2.00", "5.0×"],
    ]


def test_tokens_in_common_end_at_the_first_difference(page: str) -> None:
    assert [row[2] for row in rows(page, "The same model")] == ["tokens in common", "14 of 16", "8 of 16"]


def test_who_was_not_measured_is_named_with_the_reason(page: str) -> None:
    assert rows(page, "Not measured")[1:] == [
        ["vllm", "everything", "not installed; python -m benchmarks.environments vllm does that"],
        ["llamacpp-q8_0", "W2", r"RuntimeError: no room \| at all"],
    ]


def test_a_quick_run_says_that_it_shows_no_speeds(page: str, record: dict[str, Any]) -> None:
    assert "**A quick run" in page
    record["quick"] = False
    record["measurements"] = []
    assert "quick" not in report.render(Summary(record), {})


def test_without_a_roof_there_are_no_shares(record: dict[str, Any]) -> None:
    for entry in record["measurements"]:
        entry["roof"] = [None, None]
    summary = Summary(record)
    assert [row[4] for row in rows(report.render(summary, {}), "W1")[1:4]] == ["", "", ""]
    assert "no roof was measured" in draw(summary)


def test_the_plot_is_well_formed_and_has_a_bar_per_share(record: dict[str, Any]) -> None:
    root = ET.fromstring(draw(Summary(record)))
    bars = list(root.iter("{http://www.w3.org/2000/svg}rect"))[1:]
    assert len(bars) == 3 + 3 + 2
    assert all(float(bar.attrib["width"]) > 0 for bar in bars)


def test_page_and_plot_are_written_beside_the_record(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(record))
    page = report.write(tmp_path)
    assert (tmp_path / "RESULTS.md").read_text() == page
    assert (tmp_path / "results.svg").read_text() == draw(Summary(record))
