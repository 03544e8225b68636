"""Which files of a repository are needed: configuration, tokenizer, and one copy of the weights.

    text ─▶ configuration, tokenizer, indices     what they say decides on the rest
         ─▶ weights      the files that an index names, else those of the format; safetensors before pickled ones
         ─▶ modules      of sentence-transformers, each in a folder of its own

Who keeps the repository is the caller's affair (`huggingface`, `modelscope`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm.loader.files import LAYOUTS, index_of, indexed_names
from vllm.loader.sentence_transformers import module_folders

TEXT_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "tokenizer.jsonl", "*.py", "artifact.metadata")
SECOND_COPIES = ("consolidated*", "adapter_model*", "*.fp16.*", "*/*.safetensors", "*/*.bin", "*/*.json")
"""The trainer's own format, adapters, weights rounded, and exports for other engines in subfolders."""
_MODULE_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")

Fetch = Callable[[Sequence[str], Sequence[str]], Path]
"""Fetch the files that match one of some patterns and none of others.  Returns the folder that they are in."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What is wanted."""

    name: str
    revision: str | None
    load_format: str
    similar: str
    """What to say of similar folders here, if there is no such repository."""

    def __str__(self) -> str:
        return f"{self.name} (revision {self.revision})" if self.revision else self.name


def download(repository: Repository, fetch: Fetch) -> Path:
    """Fetch a repository, or what is new in it.  Returns its folder.

    "auto" fetches pickled weights only where there are no others.  Raises ModelError for a damaged index.
    """
    folder = fetch(TEXT_FILES, SECOND_COPIES)
    _fetch_weights(repository, folder, fetch)
    if modules := module_folders(folder):
        fetch([f"{path}/{name}" for path in modules for name in _MODULE_FILES], [])
    return folder


def _fetch_weights(repository: Repository, folder: Path, fetch: Fetch) -> None:
    if repository.load_format == "dummy":
        return
    formats = list(LAYOUTS) if repository.load_format == "auto" else [repository.load_format]
    for single, pattern in (LAYOUTS[name] for name in formats):
        index = index_of(folder, single)
        names = [single, *indexed_names(index)] if index.exists() else [pattern]
        fetch(["config.json", *names], SECOND_COPIES)
        if any(folder.glob(pattern)):
            return
