"""Code of other packages: plugins are run, or reported by name, and never in each other's way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib import metadata

import pytest

from vllm import plugins

RUN: list[str] = []


def one() -> None:
    RUN.append("one")


def two() -> None:
    RUN.append("two")


def broken() -> None:
    raise RuntimeError("the tide is out")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO, "vllm")
    RUN.clear()
    plugins.load_plugins.cache_clear()
    yield
    plugins.load_plugins.cache_clear()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have these plugins installed: name → "module:function"."""

    def install(**values: str) -> None:
        points = [metadata.EntryPoint(name, value, plugins.GROUP) for name, value in values.items()]
        monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == plugins.GROUP else [])

    return install


def test_all_that_are_installed_run_once(install: Callable[..., None]) -> None:
    install(two=f"{__name__}:two", one=f"{__name__}:one")
    assert plugins.load_plugins() == ("one", "two")
    plugins.load_plugins()
    assert RUN == ["one", "two"]


def test_broken_ones_are_reported_by_name_and_the_rest_run(
    install: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    install(away="no_such_package:register", bad=f"{__name__}:broken", good=f"{__name__}:one")
    assert plugins.load_plugins() == ("good",)
    assert "the plugin 'away' (no_such_package:register) failed" in caplog.text
    assert f"the plugin 'bad' ({__name__}:broken) failed" in caplog.text and "the tide is out" in caplog.text


@pytest.mark.parametrize(("names", "run"), [("two", ["two"]), (" two , one ", ["one", "two"]), ("", []), (",", [])])
def test_only_those_that_are_named_run(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, names: str, run: list[str]
) -> None:
    install(one=f"{__name__}:one", two=f"{__name__}:two")
    monkeypatch.setenv("VLLM_PLUGINS", names)
    plugins.load_plugins()
    assert run == RUN


def test_a_name_that_is_not_installed_is_said_with_the_nearest(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tidal=f"{__name__}:one")
    monkeypatch.setenv("VLLM_PLUGINS", "tidel")
    assert plugins.load_plugins() == ()
    assert "no plugin 'tidel' is installed. Did you mean 'tidal'?" in caplog.text
