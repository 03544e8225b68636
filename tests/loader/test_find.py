"""A name becomes a folder, or one line that says why not.  No test needs a network."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from vllm.errors import ConfigError, ModelError
from vllm.loader.find import find_model
from vllm.loader.huggingface import cached_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, an empty cache, and a working directory of the test's own.  Returns the cache."""
    for name in ("VLLM_MODEL_REDIRECT_PATH", "VLLM_USE_MODELSCOPE"):
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return cache


def put_in_cache(cache: Path, name: str, *files: str) -> Path:
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in files:
        (snapshot / file).touch()
    return snapshot


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tiny").mkdir()
    assert find_model("tiny") == Path("tiny")
    assert find_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/here") == tmp_path / "here"


def test_a_missing_folder_is_refused_with_similar_names() -> None:
    Path("tiny-llama").mkdir()
    with pytest.raises(ModelError, match=r"^no such directory: \./tiny-lama\. Similar: tiny-llama$"):
        find_model("./tiny-lama")
    with pytest.raises(ModelError, match=r"tiny-lama: no such directory, .* Similar: tiny-llama$"):
        find_model("tiny-lama")


@pytest.mark.parametrize("name", ["/no/such/folder", "a/b/c", "~/nothing-here", "two words", "../x", "a//b"])
def test_what_cannot_be_a_repository_is_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="^no such directory: "):
        find_model(name)


def test_an_empty_name_is_not_the_working_directory() -> None:
    with pytest.raises(ModelError, match="name is empty"):
        find_model("")


def test_a_file_is_not_a_model() -> None:
    Path("model.gguf").touch()
    with pytest.raises(ModelError, match="model.gguf is a file"):
        find_model("model.gguf")


def test_a_redirected_name_is_read_from_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "redirects"
    table.write_text(f"org/model {tmp_path}\n")
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", str(table))
    assert find_model("org/model") == tmp_path
    with pytest.raises(ModelError, match="org/other"):
        find_model("org/other")


def test_an_unreadable_table_of_redirects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MODEL_REDIRECT_PATH", "/no/such/table")
    with pytest.raises(ConfigError, match="VLLM_MODEL_REDIRECT_PATH cannot be read"):
        find_model("org/model")


def test_modelscope_needs_its_package_but_folders_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    monkeypatch.setitem(sys.modules, "modelscope", None)
    assert find_model(str(tmp_path)) == tmp_path
    with pytest.raises(
        ConfigError, match=r"modelscope cannot be imported .* pip install 'vllm\[modelscope\]', or unset"
    ):
        find_model("org/model")


def test_a_cached_model_is_found_without_a_network(offline: Path) -> None:
    snapshot = put_in_cache(offline, "org/model", "config.json", "model.safetensors")
    assert find_model("org/model") == snapshot
    pickled = put_in_cache(offline, "pickled", "config.json", "pytorch_model.bin")
    assert find_model("pickled") == pickled


def test_download_dir_takes_the_place_of_the_cache(tmp_path: Path) -> None:
    snapshot = put_in_cache(tmp_path / "elsewhere", "org/model", "config.json", "model.safetensors")
    assert find_model("org/model", download_dir=str(tmp_path / "elsewhere")) == snapshot


def test_without_network_the_cached_models_are_named(offline: Path) -> None:
    put_in_cache(offline, "org/one-model", "config.json")
    put_in_cache(offline, "gpt", "config.json")
    assert cached_models(offline) == ["gpt", "org/one-model"]
    with pytest.raises(ModelError, match=r"org/other: .* HF_HUB_OFFLINE is set\. The cache has: gpt, org/one-model\."):
        find_model("org/other")
    with pytest.raises(ModelError, match="revision v2"):
        find_model("gpt", revision="v2")


def test_an_empty_cache_is_said_to_be_empty() -> None:
    with pytest.raises(ModelError, match="The cache is empty"):
        find_model("org/model")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "org/model is gated: accept its terms at https://huggingface.co/org/model"),
        (errors.RepositoryNotFoundError, "org/model: no such directory, and no such repository"),
        (errors.RevisionNotFoundError, "org/model has no revision 'v9'"),
        (errors.IncompleteSnapshotError, "org/model is only partly in the local cache"),
        (errors.HfHubHTTPError, "org/model cannot be downloaded to .*: first line$"),
        (OSError, "org/model cannot be downloaded to .*: first line$"),
    ],
)
def test_what_the_hub_answers_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], message: str
) -> None:
    def download(*_: Any, **__: Any) -> str:
        error = kind.__new__(kind)
        Exception.__init__(error, "first line\nsecond line")
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=message) as error:
        find_model("org/model", revision="v9")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, offline: Path, number: int
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelError, match=rf"to {offline}: .*{os.strerror(number)}.*another folder with download_dir$"):
        find_model("org/model")
