"""A record of a run as small as can be, and a machine with round numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.floor import Roof


@pytest.fixture
def record() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("record.json").read_text())


@pytest.fixture
def roof() -> Roof:
    """Two Zen 4 cores, for which the floors have been reckoned by hand."""
    return Roof(read=41e9, bf16=440e9, int8=880e9)
