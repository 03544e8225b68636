"""transformers' processor of a model, put together from a folder's files."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vllm.errors import ModelError


class _Nothing:
    """Stands for the part of a processor that can't be had; what uses it says so."""

    merge_size = 2
    slice_mode = False
    downsample_mode = "16x"

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ModelError("videos need torchvision; install it beside torch (pip install torchvision)")


def load_processor(folder: Path, trust_remote_code: bool = False) -> Any:
    """Return the processor of a model's folder.  Raises ModelError if there is none that can be read.

    transformers' processors of videos need torchvision, and whole processors are refused without it; then it is put
    together without that part, so that images need no torchvision.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    except Exception as error:  # each class refuses in its own way
        if importlib.util.find_spec("torchvision") is not None:
            raise _refusal(folder, error) from error
        processor = _without_videos(folder, error)
    if not hasattr(processor, "tokenizer"):
        raise ModelError(
            f"{folder}: no processor of the model was found, but {type(processor).__name__}; put preprocessor_config.json "
            "and processor_config.json beside the weights"
        )
    return processor


def _without_videos(folder: Path, reason: Exception) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = transformers.AutoConfig.from_pretrained(str(folder))
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type, "")
    kind: Any = getattr(transformers, name, None)
    if kind is None or "video_processor" not in kind.get_attributes():
        raise _refusal(folder, reason) from reason
    body = {
        "check_argument_for_proper_class": lambda self, part, given: type(given),
        "__repr__": lambda self: name,
        "__module__": kind.__module__,
    }
    own: Any = type(name, (kind,), body)
    loaders: dict[str, Any] = {
        "tokenizer": transformers.AutoTokenizer,
        "image_processor": transformers.AutoImageProcessor,
    }
    try:
        parts = [
            loaders[part].from_pretrained(str(folder)) if part in loaders else _Nothing()
            for part in kind.get_attributes()
        ]
        return own.from_args_and_dict(parts, kind.get_processor_dict(str(folder))[0])
    except Exception as error:
        raise _refusal(folder, error) from error


def _refusal(folder: Path, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(f"{folder}: the model's processor can't be loaded: {lines[0]}")
