"""Embeddings beside a peer: what is embedded, and how its record is read."""

from __future__ import annotations

from pathlib import Path

from benchmarks.embeddings import COUNT, LONGEST, SHORTEST, rows, texts


def test_texts_are_the_same_each_time_and_made_of_whole_words(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n##ing\nof\ntide\nwater\nnight\n3\n")
    made = texts(tmp_path)
    assert made == texts(tmp_path) and len(made) == COUNT
    lengths = [len(text.split()) for text in made]
    assert min(lengths) >= SHORTEST and max(lengths) <= LONGEST
    assert {word for text in made for word in text.split()} == {"tide", "water", "night"}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    found = {
        "ours float32": [40.0, 60.0, 20.0],
        "sentence_transformers float32": [20.0, 40.0, 40.0],
        "ours bfloat16": [10.0, 10.0, 10.0],
        "sentence_transformers bfloat16": [10.0, 10.0, 10.0],
    }
    full, half = rows(found)
    assert full == ("float32", "40", "40", "1.50×", "1.3×", "reached")
    assert half[3:5] == ("1.00×", "1.6×") and half[5].startswith("**missed**: ")
