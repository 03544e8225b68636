"""What /proc says of processes, and what the roof's program says of the machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import roof
from benchmarks.processes import PeakMemory, available

TAKE_AND_GIVE_BACK = "b = bytearray(64 << 20); print(1, flush=True); input(); del b; print(2, flush=True); input()"


def test_the_peak_is_of_all_processes_and_is_kept_after_they_gave_back() -> None:
    nested = (
        f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {TAKE_AND_GIVE_BACK!r}]).returncode)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.readline()
    with PeakMemory(child.pid) as watch:
        pass
    at_peak = watch.peak
    child.stdin.write("\n")
    child.stdin.flush()
    child.stdout.readline()
    with PeakMemory(child.pid) as later:
        pass
    child.communicate("\n")
    assert at_peak.rss > 64 << 20
    assert at_peak.rss >= at_peak.pss >= at_peak.anonymous > 64 << 20
    assert later.peak.anonymous < at_peak.anonymous - (48 << 20)


def test_a_session_that_ended_takes_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    child.wait()
    with PeakMemory(child.pid) as watch:
        pass
    assert (watch.peak.rss, watch.peak.pss) == (0, 0)
    assert available() > 0


@pytest.mark.skipif(roof.compiler() is None, reason="needs a C compiler")
def test_the_roof_is_compiled_and_answers_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "MEGABYTES", 4)
    with roof.RoofMeter(roof.build(tmp_path), threads=1) as meter:
        found = meter.measure()
        assert found.read > 0
        assert meter.measure().read > 0
    assert subprocess.run([tmp_path / "roof", "0", "4"], capture_output=True, check=False).returncode == 2


def test_without_a_compiler_the_floor_is_left_out_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(roof.NoCompiler, match="no C compiler .* the floor is left out"):
        roof.build(tmp_path)
