"""The `vllm` command: quick where it can be, one line where the user is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vllm
from vllm.config import EngineArgs
from vllm.entrypoints.cli import COMMANDS, command_parser, main


def test_the_version_needs_no_torch() -> None:
    code = "import sys\nfrom vllm.entrypoints.cli import main\ntry: main(['--version'])\nfinally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [vllm.__version__, "False", "False"]


def test_no_help_needs_anything_heavy() -> None:
    code = (
        "import sys\nfrom vllm.entrypoints.cli import COMMANDS, command_parser\n"
        "for name in COMMANDS: command_parser(name)[0].format_help()\n"
        "heavy = ['torch', 'transformers', 'tokenizers', 'huggingface_hub', 'numpy', 'matplotlib', 'yaml', 'uvicorn', 'msgspec']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    parser, _ = command_parser(name)
    assert f"vllm {name} [options]" in parser.format_help()
    assert [action.dest for action in parser._actions if not action.help] == []


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in COMMANDS)


def test_the_module_runs_as_the_command() -> None:
    command = [sys.executable, "-m", "vllm.entrypoints.cli", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == vllm.__version__


def test_a_reader_that_leaves_is_no_fault() -> None:
    command = f"{sys.executable} -m vllm.entrypoints.cli completion bash | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("#") and done.stderr == ""


def test_run_continues_a_prompt_of_the_model_inside(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "Hello, my name is", "--max-tokens", "8", "--temperature", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Hello, my name is ")
    assert "Processed prompts: 100%" in captured.err and "toks/s" in captured.err


def test_run_takes_a_model_and_options(checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = str(checkpoint("llama"))
    options = [
        "--max-model-len=64",
        "--dtype",
        "float32",
        "--no-enable-prefix-caching",
        "--hf-overrides",
        "{}",
        "-n",
        "2",
    ]
    assert main(["run", model, "The tide", "--max-tokens", "3", *options]) == 0
    assert capsys.readouterr().out.count("The tide") == 2
    assert main(["run", model, "Hi", "--chat", "--max-tokens", "3", "--temperature", "0"]) == 0
    assert "<|im_start|>" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["run", "x", "--max-modle-len", "4"], 2, "unknown option --max-modle-len. Did you mean --max-model-len?"),
        (["run", "x", "--dtype", "fp17"], 2, "invalid choice: 'fp17'"),
        (["run", "x", "--hf-overrides", "{"], 2, "is not JSON"),
        (["run", "x", "--hf-overrides", "3"], 2, "is not a JSON object"),
        (["run"], 2, "required: prompt"),
        ([], 2, "required: COMMAND"),
        (["sevre"], 2, "unknown command sevre. Did you mean serve?"),
        (["zzz"], 2, "unknown command zzz. There are serve, run,"),
        (["bench"], 2, "required: COMMAND"),
        (["bench", "serv"], 2, "vllm bench: unknown command serv. Did you mean serve?"),
        (["collect-env", "more"], 2, "unexpected argument 'more'"),
        (["check", "a", "--model", "b"], 1, "two models are named, a and --model b"),
        (["check", "--num-prompts", "0"], 1, "--num-prompts must be at least 1, got 0"),
        (["check", "--load-format", "dummy"], 1, "makes weights up"),
        (["run", "no/such/folder/anywhere", "x"], 1, "vllm: no such directory: no/such/folder/anywhere"),
        (["run", "x", "--max-model-len", "4000000"], 1, "vllm: max_model_len=4000000 is more than"),
        (["run", "x", "--max-tokens", "0"], 1, "vllm: max_tokens must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        assert main(arguments) == status
    except SystemExit as stop:
        assert stop.code == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_options_that_cannot_matter_are_taken_and_missing_features_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "run",
        "--enforce-eager",
        "--swap-space",
        "4",
        "--pipeline-parallel-size",
        "1",
        "Hello",
        "--max-tokens=1",
    ]
    assert main(command) == 0
    assert main(["run", "Hello", "--pipeline-parallel-size", "2"]) == 1
    assert "vllm: pipeline_parallel_size=2 is not supported by this version" in capsys.readouterr().err


def test_every_option_of_the_engine_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    help_text = capsys.readouterr().out
    for option in dataclasses.fields(EngineArgs):
        assert option.metadata["doc"].endswith(".")
        assert option.name == "model" or f"--{option.name.replace('_', '-')}" in help_text
