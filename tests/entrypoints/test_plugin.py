"""The template of a plugin, installed as anybody would, gives a model that runs, is right, and is served."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.entrypoints.serve.serving import starting

ROOT = Path(__file__).parents[2]
LAYERS = '{"architectures": ["TidalLayersForCausalLM"]}'
CHECK = """
import sys
from vllm.entrypoints.cli import main
sys.exit(main(["check", sys.argv[1], "--trust-remote-code", "--num-prompts", "2", "--hf-overrides", sys.argv[2]]))
"""
RUN = """
import sys
from vllm import LLM, SamplingParams
for name in ("TidalForCausalLM", "TidalLayersForCausalLM"):
    with LLM(sys.argv[1], hf_overrides={"architectures": [name]}, dtype="float32") as llm:
        print(llm.generate("High tide", SamplingParams(temperature=0), use_tqdm=False)[0].outputs[0].token_ids)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the package is installed."""
    place = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(ROOT / "examples" / "plugin", place / "source")  # pip builds in it
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(place / "site"), str(source)], check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place / "site")])}


@pytest.fixture(scope="module")
def model(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tidal")
    subprocess.run([sys.executable, "-m", "tidal.checkpoint", str(folder)], env=installed, check=True)
    return folder


def run(installed: dict[str, str], script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, env={**installed, **variables}, capture_output=True, text=True, check=False)


def test_the_module_is_what_transformers_computes(installed: dict[str, str], model: Path) -> None:
    done = run(installed, CHECK, str(model), LAYERS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("right: ")


def test_both_generate_without_the_code_that_comes_with_the_checkpoint(installed: dict[str, str], model: Path) -> None:
    done = run(installed, RUN, str(model))
    assert done.returncode == 0, done.stderr
    spec, layers = done.stdout.splitlines()
    assert spec == layers


SIGHT = """
import sys
import torch
from PIL import Image
from safetensors.torch import load_file
from tidal.sight import Eye, Processor
from vllm import LLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
with LLM(sys.argv[1], dtype="float32") as llm:
    def say(data, text="High <picture> tide"):
        prompt = {"prompt": text, "multi_modal_data": {"image": data}}
        return llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids
    seen = {color: say(Image.new("RGB", (9, 9), color)) for color in ("red", "blue")}
    weights = load_file(sys.argv[1] + "/model.safetensors")
    eye = Eye(type("Config", (), {"hidden_size": weights["tower.patches.bias"].shape[0]}))
    eye.load_state_dict({name[6:]: tensor for name, tensor in weights.items() if name.startswith("tower.")})
    _, features = Processor(None).prepare("image", Image.new("RGB", (9, 9), "red"))
    found = eye.get_image_features(**features).detach()
    assert say(found, "High [<picture>] tide") == seen["red"] != seen["blue"]
"""


def test_it_sees_with_a_tower_and_a_processor_of_its_own(installed: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tidal.sight", str(tmp_path)], env=installed, check=True)
    done = run(installed, SIGHT, str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_without_the_plugin_there_is_no_such_model(installed: dict[str, str], model: Path) -> None:
    done = run(installed, RUN, str(model), VLLM_PLUGINS="")
    assert done.returncode and "ModelError" in done.stderr
    assert "the model type 'tidal' is defined by code that comes with the model" in done.stderr.splitlines()[-1]


def test_the_model_is_served_by_an_engine_in_a_process_of_its_own(installed: dict[str, str], model: Path) -> None:
    with starting(str(model), PYTHONPATH=installed["PYTHONPATH"]) as server:
        server.read_until("ready in")
        answer = server.openai().completions.create(model=str(model), prompt="High tide", max_tokens=3)
        assert answer.usage is not None and answer.usage.completion_tokens == 3
