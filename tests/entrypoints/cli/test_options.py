"""Flags made from dataclasses, and options from a file."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vllm.config import EngineArgs, option
from vllm.entrypoints.cli import command_parser, main
from vllm.entrypoints.cli import serve as serve_command
from vllm.entrypoints.cli.options import GROUPS, add_options
from vllm.entrypoints.cli.parser import Parser
from vllm.entrypoints.serve.lineup import Options
from vllm.entrypoints.serve.settings import SERVER_UNSUPPORTED, SERVER_WITHOUT_EFFECT, ServerArgs


@dataclass
class Args:
    count: int | None = option(None, "A number.")
    share: float = option(0.5, "Of 100%.")
    on: bool = option(True, "A switch.")
    kind: str = option("a", "A choice.", ("a", "b"))
    names: list[str] = option([], "Several.")
    ports: list[int] = option([], "Several numbers.")
    more: dict[str, Any] = option({}, "An object.")


def parsed(*arguments: str) -> dict[str, Any]:
    parser = Parser("test")
    add_options(parser, Args, set(), {"count": "numbers"}, "rest")
    return vars(parser.parse_args(arguments))


def served(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given for the one model of a server, and for the server."""
    shared, models = serve_command.split(command_parser("serve")[0].parse_args(arguments))
    (own,) = models or [Options({}, {})]
    assert not own.server
    return {**own.engine, **shared.engine}, dict(shared.server)


def test_what_is_not_given_is_not_there() -> None:
    assert parsed() == {}


def test_flags_have_the_types_of_their_fields() -> None:
    given = parsed(
        *["--count", "3", "--share", "1", "--no-on", "--kind", "b", "--names", "x", "y", "--ports", "1", "2"],
        "--more",
        '{"a": 1}',
    )
    assert given == {
        "count": 3,
        "share": 1.0,
        "on": False,
        "kind": "b",
        "names": ["x", "y"],
        "ports": [1, 2],
        "more": {"a": 1},
    }


def test_a_list_may_be_written_as_json() -> None:
    assert parsed("--names", '["*"]') == {"names": ["*"]}
    assert parsed("--names", "[::1]") == {"names": ["[::1]"]}


def test_every_option_has_its_place_in_the_help() -> None:
    engine = {name for names in GROUPS.values() for name in names}
    assert engine == {field.name for field in dataclasses.fields(EngineArgs)} - {"model"}
    server = {name for names in serve_command.GROUPS.values() for name in names}
    assert server <= {field.name for field in dataclasses.fields(ServerArgs)}  # what has no group stands under "server"


def test_serve_takes_every_option_of_the_engine_and_of_the_server() -> None:
    flags = command_parser("serve")[0].flags()
    for field in (*dataclasses.fields(EngineArgs), *dataclasses.fields(ServerArgs)):
        assert f"--{field.name.replace('_', '-')}" in flags
    for name in (*SERVER_UNSUPPORTED, *SERVER_WITHOUT_EFFECT):
        assert f"--{name.replace('_', '-')}" in flags


def test_serve_gives_each_side_its_own() -> None:
    engine, server = served("m", "--port", "1", "--max-num-seqs", "2", "--served-model-name", "a", "b", "--seed", "3")
    assert engine == {"model": "m", "max_num_seqs": 2, "seed": 3}
    assert server == {"port": 1, "served_model_name": ["a", "b"]}
    assert served("--enable-log-requests", "--disable-log-stats", "--enforce-eager") == (
        {"disable_log_stats": True, "enforce_eager": True},
        {"enable_log_requests": True},
    )


def test_serve_names_the_nearest_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        served("--api-keys", "x")
    assert "Did you mean --api-key?" in capsys.readouterr().err


def test_serve_without_a_model_says_which_there_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys
    import types

    calls: list[Any] = []
    fake = types.ModuleType("vllm.entrypoints.serve.server")
    fake.run_server = lambda *args: calls.append(args) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.serve.server", fake)
    folder = tmp_path / "models--some--model" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert main(["serve", "--download-dir", str(tmp_path), "--port", "9"]) == 3
    assert "vllm serve some/model" in capsys.readouterr().err
    ((model,), server) = calls.pop()
    assert (model.engine.model, model.names, server.port) == ("", ("default",), 9)
    assert main(["serve", "--api-key", "secret", "some/model"]) == 1
    err = capsys.readouterr().err
    assert "no model is named, and --api-key has 2 values; name the model first" in err and "secret" not in err
    assert main(["serve", "named", "--download-dir", str(tmp_path)]) == 3
    assert capsys.readouterr().err == ""
    assert calls.pop()[0][0].names == ("named",)


class TestSeveralModels:
    def models(self, *arguments: str) -> list[Any]:
        shared, models = serve_command.split(command_parser("serve")[0].parse_args(arguments))
        return [*map(tuple, models)] + [tuple(shared)]

    def test_the_flag_may_be_repeated(self) -> None:
        assert self.models("a", "--model", "b", "--model=c", "--seed", "3") == [
            *(({"model": name}, {}) for name in "abc"),
            ({"seed": 3}, {}),
        ]

    def test_a_model_may_have_options_of_its_own(self) -> None:
        entry = (
            '{"model": "b", "served-model-name": ["x", "y"], "max_model_len": 64, "unload_after": 5, "task": "embed"}'
        )
        assert self.models("a", "--model", entry, "--unload-after", "60") == [
            ({"model": "a"}, {}),
            (
                {"model": "b", "max_model_len": 64, "task": "embed"},
                {"served_model_name": ["x", "y"], "unload_after": 5.0},
            ),
            ({}, {"unload_after": 60.0}),
        ]

    def test_a_file_has_them_as_a_list(self, tmp_path: Path) -> None:
        file = tmp_path / "server.yaml"
        file.write_text(
            "model:\n- a\n- {model: b, dtype: float32, enable-prefix-caching: false, hf-overrides: {x: 1}}\nport: 81\n"
        )
        own = {"model": "b", "dtype": "float32", "enable_prefix_caching": False, "hf_overrides": {"x": 1}}
        shared = ({}, {"port": 81})
        assert self.models("--config", str(file)) == [({"model": "a"}, {}), (own, {}), shared]
        for named in (["c"], ["--model", "c"], ["--model", '{"model": "c"}']):
            assert self.models("--config", str(file), *named) == [({"model": "c"}, {}), shared]

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            ('{"model": "b", "port": 8000}', "--model b: --port is for the whole server; give it beside the models"),
            ('{"model": "b", "dtpye": "float32"}', "--model b: unknown option 'dtpye'. Did you mean 'dtype'?"),
            ('{"model": 3}', "must be a folder or a name"),
            ('{"model": "b", "dtype": "int"}', "argument --dtype: invalid choice: 'int'"),
            ('{"model": ', "is not JSON"),
        ],
    )
    def test_a_mistake_is_one_line(self, entry: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
        try:
            assert main(["serve", "a", "--model", entry]) == 1
        except SystemExit as stop:
            assert stop.code == 2
        assert message in capsys.readouterr().err


class TestConfigFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "server.yaml"

    def test_keys_are_flags(self, file: Path) -> None:
        file.write_text(
            "model: m\nport: 81\nserved-model-name: [a, b]\nhf_overrides: {rope_theta: 5}\nenable-prefix-caching: false\n"
            "enforce-eager: true\nrevision: ~\ngpu-memory-utilization: 0.5\n"
        )
        engine, server = served("--config", str(file))
        assert engine == {
            "model": "m",
            "hf_overrides": {"rope_theta": 5},
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "gpu_memory_utilization": 0.5,
        }
        assert server == {"port": 81, "served_model_name": ["a", "b"]}

    def test_the_command_line_wins(self, file: Path) -> None:
        file.write_text("model: m\nport: 81\nserved-model-name: [a, b]\nenable-prefix-caching: false\n")
        engine, server = served("other", "--config", str(file), "--port", "82", "--enable-prefix-caching")
        assert engine == {"model": "other", "enable_prefix_caching": True}
        assert server == {"port": 82, "served_model_name": ["a", "b"]}

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("prot: 1", "unknown option 'prot'. Did you mean 'port'?"),
            ("config: x", "unknown option 'config'"),
            ("port: [1, 2]", "port takes one value, got a list of 2"),
            ("enable-prefix-caching: maybe", "enable-prefix-caching must be true or false, got 'maybe'"),
            ("[1, 2]", "must hold keys and values"),
            ("port: {", "is not YAML"),
            ("port: high", "invalid int value: 'high'"),
        ],
    )
    def test_a_mistake_is_one_line(
        self, file: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file.write_text(content)
        with pytest.raises(SystemExit) as stop:
            served("--config", str(file))
        assert stop.value.code
        assert message in capsys.readouterr().err

    def test_a_missing_file_is_named(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            served("--config", str(file))
        assert f"{file} cannot be read: No such file" in capsys.readouterr().err


def test_the_parser_shows_its_flags() -> None:
    parser = Parser("test")
    parser.add_argument("-x", "--long")
    assert list(parser.flags()) == ["--help", "--long"]
    assert isinstance(parser.flags()["--long"], argparse.Action)
