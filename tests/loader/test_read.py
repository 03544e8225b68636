"""The files of a checkpoint: which ones, whether they are whole, and what is in them."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from vllm.errors import ModelError
from vllm.loader.files import weight_files
from vllm.loader.read import check_files, tensors


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_single_file_is_read_back_as_it_was_written(single: Path, weights: dict[str, Tensor]) -> None:
    files = weight_files(single)
    check_files(files)
    assert [file.name for file in files] == ["model.safetensors"]
    assert_same({name: tensor.clone() for name, tensor in tensors(files)}, weights)


def test_shards_are_read_back_as_they_were_written(sharded: Path, weights: dict[str, Tensor]) -> None:
    files = weight_files(sharded)
    check_files(files)
    assert len(files) == 3
    assert_same({name: tensor.clone() for name, tensor in tensors(files)}, weights)


@pytest.mark.parametrize("old_format", [False, True])
def test_pickled_weights_are_read_where_there_are_no_others(
    tmp_path: Path, weights: dict[str, Tensor], old_format: bool
) -> None:
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not old_format)
    files = weight_files(tmp_path)
    check_files(files)
    assert_same(dict(tensors(files)), weights)


def test_safetensors_are_preferred_to_pickled_weights(single: Path) -> None:
    torch.save({}, single / "pytorch_model.bin")
    assert [file.name for file in weight_files(single)] == ["model.safetensors"]


def test_the_wanted_format_is_read_or_refused(single: Path) -> None:
    with pytest.raises(ModelError, match=r"pytorch_model\*.bin; load_format='pt'"):
        weight_files(single, "pt")
    torch.save({}, single / "pytorch_model.bin")
    assert [file.name for file in weight_files(single, "pt")] == ["pytorch_model.bin"]
    (single / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="load_format='safetensors'"):
        weight_files(single, "safetensors")


def test_sharded_pickles_are_read_through_their_index(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    places = {}
    for number, (name, tensor) in enumerate(weights.items()):
        places[name] = f"pytorch_model-{number}.bin"
        torch.save({name: tensor}, tmp_path / places[name])
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(dict(tensors(weight_files(tmp_path))), weights)


def test_files_of_any_name_are_found_but_no_second_copies(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    for name in ("weights.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        save_file(weights, tmp_path / name)
    assert [file.name for file in weight_files(tmp_path)] == ["weights.safetensors"]


def test_an_incomplete_download_is_named_with_both_sizes(single: Path) -> None:
    file = single / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(
        ModelError, match=f"{len(content) - 100:,} bytes, its header promises {len(content):,}: incomplete download"
    ):
        check_files([file])


def test_a_file_longer_than_its_header_promises_is_refused(single: Path) -> None:
    file = single / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(ModelError, match="damaged; delete it"):
        check_files([file])


@pytest.mark.parametrize("length", [10_000, 200_000_000, 2**63])
def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path, length: int) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=f"its header claims {length:,}"):
        check_files([file])


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object"),
        (b'{"a": 1}', "header is damaged"),
        (b'{"a": {"data_offsets": [0]}}', "header is damaged"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match=message):
        check_files([file])


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="file is 0 bytes"):
        check_files(weight_files(tmp_path))


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(ModelError, match="git lfs pull"):
        check_files([file])


def test_a_header_that_contradicts_itself_is_refused_when_read(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    check_files([file])
    with pytest.raises(ModelError, match=r"model.safetensors: .*fetch it again"):
        list(tensors([file]))


def test_a_truncated_pickle_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(weights, file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ModelError, match="incomplete download"):
        check_files([file])


def test_a_pickle_that_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("pwned",)

    buffer = io.BytesIO()
    pickle.dump({"a": Call()}, buffer, protocol=2)
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(buffer.getvalue())
    with pytest.raises(ModelError, match="cannot be read as plain tensors"):
        list(tensors([file]))


@pytest.mark.parametrize(("content", "message"), [([1], "instead of a dict"), ({"a": 1}, "'a' is a int")])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=message):
        list(tensors(weight_files(tmp_path)))


def test_missing_shards_are_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names 3 files, of which 1 are missing: model-00002-of-00003.safetensors"):
        weight_files(sharded)


def test_an_index_cannot_point_out_of_its_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ModelError, match="not a file of its own folder"):
        weight_files(sharded)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1, "b": "c"}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="no readable `weight_map`"):
        weight_files(tmp_path)


@pytest.mark.parametrize(("file", "message"), [("x.gguf", "found only x.gguf"), ("notes.md", "download the model")])
def test_a_folder_without_weights_is_refused(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).touch()
    with pytest.raises(ModelError, match=message):
        weight_files(tmp_path)


def test_an_unknown_storage_type_is_refused_by_name(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(1))
    with pytest.raises(ModelError, match="a is stored as F4"):
        check_files([file])


def test_the_progress_bar_is_drawn_only_when_asked_for(single: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list(tensors(weight_files(single)))
    assert capsys.readouterr().err == ""
    list(tensors(weight_files(single), progress=True))
    assert "Loading weights: 100%" in capsys.readouterr().err
