"""lm_eval, as it is published, finds for a model of ours the numbers that it finds for transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: the extra compat")

WORDS = [
    "the",
    "tide",
    "comes",
    "in",
    "twice",
    "a",
    "day",
    "and",
    "nobody",
    "thinks",
    "about",
    "it",
    "boats",
    "rise",
    "and",
    "fall",
    "with",
    "church",
    "clock",
]
TASKS = {
    "tide_mc": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "tide_gen": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "tide_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
""",
}


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tasks whose data are in it."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    draw = random.Random(0)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    rows = [
        {
            "question": words(3, 12),
            "choices": [words(1, 4) for _ in range(4)],
            "answer": draw.randrange(4),
            "text": words(20, 60),
        }
        for _ in range(12)
    ]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, text in TASKS.items():
        data = (
            f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/data.jsonl}}}}\ntest_split: test\n"
        )
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return tmp_path


def evaluate(model: str, folder: Path, tasks: Path) -> dict[str, Any]:
    found = lm_eval.simple_evaluate(
        model=model,
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=list(TASKS),
        task_manager=lm_eval.tasks.TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=8,
        bootstrap_iters=0,
    )
    assert found is not None
    return found


def test_it_finds_what_it_finds_for_transformers(checkpoint: Callable[..., Path], tasks: Path) -> None:
    folder = checkpoint("llama")
    ours, theirs = (evaluate(model, folder, tasks) for model in ("vllm", "hf"))
    for task, metrics in theirs["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours["results"][task][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (task, name)
    for mine, other in zip(ours["samples"]["tide_gen"], theirs["samples"]["tide_gen"], strict=True):
        assert mine["resps"] == other["resps"]
    assert theirs["results"]["tide_text"]["bits_per_byte,none"] > 1
