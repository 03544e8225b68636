"""The page's blocks for the Hub and for ModelScope run as they stand, once their dots are filled in, on loopback."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import hubs
from tests.entrypoints.test_seed import blocks


@pytest.fixture
def hub(checkpoint: Callable[..., Path], tmp_path: Path) -> Iterator[hubs.Hub]:
    """A hub with a model in two shards, of which "v1" is the only revision beside the usual ones."""
    folder = shutil.copytree(checkpoint("llama"), tmp_path / "source")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        places.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with hubs.serve() as hub:
        hub.add("org/tiny", folder, "main", "master", "v1")
        yield hub


def run(hub: hubs.Hub, home: Path, script: str, *lines: str) -> str:
    """Run lines of a shell, and then a script.  Returns what it printed."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {**hubs.environment_without(), **hub.environment(home), "PYTHONPATH": path}
    shell = "\n".join([*lines, f"exec {sys.executable} -"])
    done = subprocess.run(
        ["bash", "-ec", shell], input=script, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def filled(block: str, **values: str) -> str:
    """Put values in the place of the dots."""
    for name, value in values.items():
        block = block.replace(f"{name}=...", f"{name}={value!r}")
    assert "..." not in block
    return block


def test_the_block_for_the_hub_runs(hub: hubs.Hub, tmp_path: Path) -> None:
    (block,) = blocks("HuggingFace Hub")
    out = run(hub, tmp_path / "home", filled(block, model="org/tiny"))
    assert re.search(r"RequestOutput\(.*'Hello, my name is'", out) and "PoolingRequestOutput(" in out
    assert {"config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} <= hub.fetched()


@pytest.mark.skipif(importlib.util.find_spec("modelscope") is None, reason="the extra modelscope is not installed")
@pytest.mark.parametrize(("task", "kept", "shown"), [("generate", 0, "RequestOutput("), ("embed", 1, "PoolingRequest")])
def test_the_blocks_for_modelscope_run(hub: hubs.Hub, tmp_path: Path, task: str, kept: int, shown: str) -> None:
    export, block = blocks("ModelScope")
    load, *ways = re.split(r"\n(?=# For )", block)
    script = filled("\n".join([load, ways[kept]]), model="org/tiny", revision="v1", task=task)
    assert shown in run(hub, tmp_path / "home", script, export.removeprefix("$ "))
    assert not any("/resolve/" in path for _, path, _ in hub.asked)
    assert hub.bodies("model-00002-of-00002.safetensors")
