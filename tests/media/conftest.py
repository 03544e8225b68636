"""Tiny models that see, made once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def media_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]
) -> Callable[[str], Path]:
    """`media_checkpoint("llava")` → a model folder."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        from tests.media.tiny import save_media_checkpoint

        if name not in made:
            made[name] = save_media_checkpoint(tmp_path_factory.mktemp(name), tokenizer_folders["byte level"], name)
        return made[name]

    return make
