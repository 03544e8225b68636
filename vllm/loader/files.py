"""Which files of a folder hold a model's weights.  Safetensors files are preferred to pickled ones; an index names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm.errors import ModelError

LAYOUTS = {
    "safetensors": ("model.safetensors", "*.safetensors"),
    "pt": ("pytorch_model.bin", "pytorch_model*.bin"),
    "fairseq2": ("model.pt", "model.pt"),
}
"""load_format → the name of an unsplit file, the pattern of all files; fairseq2's is taken by "auto" where there is no other."""
_OTHER_FORMATS = ("*.gguf", "*.pth", "*.pt", "*.h5", "*.msgpack", "*.onnx", "consolidated*.safetensors")


def weight_files(path: Path, load_format: str = "auto") -> list[Path]:
    """Return the files that hold the weights of the model in the folder `path`, each weight once.

    `load_format` is "safetensors", "pt" (pickled), or "auto": safetensors, and pickled where there are none, at last fairseq2's.
    Raises ModelError if there are none, or if an index names a file that is not there.
    """
    formats = [load_format] if load_format in LAYOUTS else list(LAYOUTS)
    for single, pattern in (LAYOUTS[name] for name in formats):
        index = index_of(path, single)
        if (path / single).is_file():
            return [path / single]
        if index.exists():
            return _indexed(index)
        found = [file for file in sorted(path.glob(pattern)) if not file.name.startswith(("consolidated", "adapter_"))]
        if found:
            return found
    wanted = ", ".join(LAYOUTS[name][1] for name in formats)
    others = sorted(file.name for pattern in _OTHER_FORMATS for file in path.glob(pattern))
    hint = f"found only {others[0]}, a format that is not read; convert it" if others else "download the model again"
    raise ModelError(f"{path} has no weights ({wanted}; load_format={load_format!r}): {hint}")


def all_weight_files(path: Path, config: Any, load_format: str = "auto") -> list[Path]:
    """Return `weight_files` of a folder, and of those in which parts of the model lie that its configuration only names."""
    beside = [Path(folder) for folder in getattr(config, "weights_beside", ())]
    return [file for folder in (path, *beside) for file in weight_files(folder, load_format)]


def index_of(path: Path, single: str) -> Path:
    """Return where the index of a split checkpoint is, if there is one; `single` is the name it would have unsplit."""
    return path / f"{single}.index.json"


def indexed_names(index: Path) -> list[str]:
    """Return the names of the files that an index speaks of, sorted.  Raises ModelError if it is damaged."""
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} is damaged: it has no readable `weight_map`; fetch it again") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise ModelError(f"{index} names {outside[0]!r}, which is not a file of its own folder")
    return names


def _indexed(index: Path) -> list[Path]:
    names = indexed_names(index)
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise ModelError(
            f"{index.name} names {len(names)} files, of which {len(missing)} are missing: {abbreviate(missing)}; "
            f"download the model in {index.parent} again"
        )
    return [index.parent / name for name in names]


def abbreviate(names: Sequence[str], most: int = 5) -> str:
    """Return the first names as one string, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
