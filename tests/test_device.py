"""What the device says of itself."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from vllm import device


def test_available_memory_is_what_psutil_finds() -> None:
    assert device._available() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_without_proc_psutil_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_file(self: Path, *_: object, **__: object) -> str:
        raise FileNotFoundError(self)

    expected = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: expected)
    monkeypatch.setattr(Path, "read_text", no_file)
    assert device._available() == expected.available
