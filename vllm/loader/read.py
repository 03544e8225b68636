"""Read the files that hold a model's weights: whether they are whole, and their tensors one at a time.

    model.safetensors   ┌────────┬──────────────────────────────────────────┬──────────────────────┐
                        │ length │ header: JSON, name → dtype, shape, place  │ the tensors' bytes   │
                        └────────┴──────────────────────────────────────────┴──────────────────────┘
                         8 bytes   `length` bytes                             as the header promises

The files are mapped into memory, never read into it: a tensor's pages are loaded when it is looked at, and dropped when
the next one's turn comes; what was kept of it is loaded again when it is used.  Pickled files are read only as plain
tensors.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vllm.errors import ModelError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

_DTYPES = frozenset(
    [
        "F64",
        "F32",
        "F16",
        "BF16",
        "F8_E4M3",
        "F8_E5M2",
        "F8_E8M0",
        "I64",
        "I32",
        "I16",
        "I8",
        "U64",
        "U32",
        "U16",
        "U8",
        "BOOL",
        "C64",
    ]
)
"""The storage types of the safetensors format that torch has too."""


def check_files(paths: Iterable[Path]) -> None:
    """Check that every file is as long as its header promises.  Takes microseconds and reads no weights.

    Raises ModelError that names the first file that is not whole.
    """
    for path in paths:
        if path.suffix == ".safetensors":
            _check_safetensors(path)
        else:
            _check_pickle(path)


def tensors(paths: Sequence[Path], *, progress: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of everything in the files, one at a time, in the order of the file.

    A safetensors file's tensors are views of the mapped file, and may be kept as such while nobody changes the file.
    """
    sizes = [path.stat().st_size for path in paths]
    bar = tqdm(total=sum(sizes), desc="Loading weights", unit="B", unit_scale=True, disable=not progress)
    with bar:
        for path, size in zip(paths, sizes, strict=True):
            end = bar.n + size
            for name, tensor in _safetensors(path) if path.suffix == ".safetensors" else _pickled(path):
                num_bytes = tensor.nbytes
                yield name, tensor
                del tensor
                bar.update(num_bytes)
            bar.update(end - bar.n)  # what is in the file beside tensors


def _check_safetensors(path: Path) -> None:
    header, start = _read_header(path)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    try:
        ends = [int(entry["data_offsets"][1]) for entry in entries.values()]
        foreign = {name: entry["dtype"] for name, entry in entries.items() if entry["dtype"] not in _DTYPES}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the header is damaged; delete the file and fetch it again") from error
    for name, dtype in foreign.items():
        raise ModelError(f"{path}: {name} is stored as {dtype}, which is not read; convert the model")
    promised, size = start + max(ends, default=0), path.stat().st_size
    if size < promised:
        raise ModelError(
            f"{path}: file is {size:,} bytes, its header promises {promised:,}: incomplete download; "
            "delete it and fetch it again"
        )
    if size > promised:
        raise ModelError(
            f"{path}: file is {size:,} bytes, its header promises {promised:,}: damaged; delete it and fetch it again"
        )


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its tensors begin."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if first == b"version ":  # the first line of the text that stands for the file in a Git repository
            raise ModelError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
        length = int.from_bytes(first, "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ModelError(
                f"{path}: file is {size:,} bytes, its header claims {length:,} (at most {MAX_HEADER_BYTES:,} are "
                "read): incomplete download, or not a safetensors file; delete it and fetch it again"
            )
        content = file.read(length)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the header is not JSON; delete the file and fetch it again") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: the header is not an object; delete the file and fetch it again")
    return header, 8 + length


def _check_pickle(path: Path) -> None:
    if zipfile.is_zipfile(path) or _is_old_pickle(path):
        return
    size = path.stat().st_size
    raise ModelError(
        f"{path}: file is {size:,} bytes and not a whole torch archive: incomplete download; "
        "delete it and fetch it again"
    )


def _is_old_pickle(path: Path) -> bool:
    """Whether the file is of the kind that torch wrote before version 1.6, without an archive around it."""
    with path.open("rb") as file:
        return file.read(2) == b"\x80\x02"


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            mapping = _Mapping(path)
            for name in file.offset_keys():
                tensor = file.get_tensor(name)
                first, size = tensor.data_ptr(), tensor.nbytes
                yield name, tensor
                del tensor
                mapping.drop(first, size)
    except SafetensorError as error:
        raise ModelError(f"{path}: {error}; delete the file and fetch it again") from error


class _Mapping:
    """Where a file is mapped to in this process.

    While a checkpoint is converted, the pages that were read would be counted as used beside the result: for a model of
    1 GB, 1 GB more (measured).
    """

    def __init__(self, path: Path) -> None:
        self.path = os.path.realpath(path)
        self._regions: list[tuple[int, int]] | None = None

    def drop(self, first: int, size: int) -> None:
        """Forget the pages that lie wholly in a range of addresses, if it is the file's: they are read again on use."""
        if self._regions is None:
            self._regions = self._find()
        if any(start <= first and first + size <= end for start, end in self._regions):
            start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (first + size - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if length > 0:
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)

    def _find(self) -> list[tuple[int, int]]:
        """Read this process's map; where there is none, nothing is dropped."""
        try:
            lines = Path("/proc/self/maps").read_text().splitlines()
        except OSError:
            return []
        spans = [line.split()[0].split("-") for line in lines if line.endswith(f" {self.path}")]
        return [(int(start, 16), int(end, 16)) for start, end in spans]


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    content = _load_pickle(path)
    while content:
        name = next(iter(content))
        yield name, content.pop(name)


def _load_pickle(path: Path) -> dict[str, Tensor]:
    """Load a pickled state dict.  Only tensors and plain containers are unpickled: the file can run no code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=not _is_old_pickle(path))
    except Exception as error:  # torch and pickle raise RuntimeError, UnpicklingError, EOFError, ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{path} cannot be read as plain tensors: {reason}; fetch it again, or convert it to safetensors"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__} instead of a dict of tensors")
    key = content.get("model_key")
    if isinstance(key, str) and isinstance(content.get(key), dict):  # fairseq2 says under which name its weights are
        content = content[key]
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save the state dict alone")
    return dict(content)
