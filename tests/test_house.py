"""The rules of the house: who imports whom, what importing costs, where the environment is read, how long a file is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vllm

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "vllm").rglob("*.py"))
MOST_LINES = 450

WITHOUT_TENSORS = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for room in ("vllm.scheduler", "vllm.kv_cache"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        importlib.import_module(module.name)
"""


def run(code: str) -> str:
    """Run code in an interpreter of its own and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_imports_point_down() -> None:
    assert "0 broken" in run(
        "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, verbose=False))"
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "numpy", "tokenizers", "huggingface_hub"]
    assert run(f"import sys, vllm; print([name for name in {heavy} if name in sys.modules])") == "[]\n"


def test_a_first_token_needs_nothing_that_only_some_requests_do() -> None:
    rare = ["transformers", "huggingface_hub", "jinja2", "psutil"]
    code = (
        "import sys; from vllm import LLM, SamplingParams\n"
        "LLM().generate('A', SamplingParams(max_tokens=1), use_tqdm=False)\n"
        f"print([name for name in {rare} if name in sys.modules])"
    )
    assert run(code) == "[]\n"


def test_deciding_needs_no_torch() -> None:
    run(WITHOUT_TENSORS)


@pytest.mark.parametrize("name", ["os.environ", "getenv", "putenv"])
def test_only_one_file_reads_the_environment(name: str) -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if name in path.read_text() and path.name != "env.py"] == []


def test_no_file_is_too_long() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_every_file_says_what_it_is_for() -> None:
    assert [str(path.relative_to(ROOT)) for path in SOURCES if not path.read_text().startswith('"""')] == []


def test_the_version_is_the_same_everywhere() -> None:
    number = re.match(r"(\d+)\.(\d+)\.(\d+)", vllm.__version__)
    assert number is not None
    assert tuple(int(part) for part in number.groups()) == vllm.__version_tuple__[:3]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == vllm.__version__


def test_the_type_marker_is_shipped() -> None:
    assert (ROOT / "vllm" / "py.typed").exists()
