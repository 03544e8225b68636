"""The documented door to tokenizers as transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm.inputs.tokenizer import hf_tokenizer
from vllm.loader.find import find_model

__all__ = ["get_tokenizer"]


def get_tokenizer(
    tokenizer_name: str | Path,
    *,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **options: Any,
) -> Any:
    """Return the transformers tokenizer of a folder or repository; `options` are handed on to it.

    There is one implementation, whatever `tokenizer_mode` says.  Raises ModelError if there is none that can be loaded.
    """
    folder = find_model(str(tokenizer_name), revision, download_dir, load_format="dummy")
    return hf_tokenizer(folder, trust_remote_code=trust_remote_code, **options)
