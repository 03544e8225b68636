"""Fill the windows of a model from a checkpoint, in one walk over its tensors.

    checkpoint                          windows
    "…q_proj.weight"  ── cut ── round ──▶ qkv[:q]
    "…lm_head.weight" ── ignored

At the end every window has been filled and every name of the checkpoint is explained, or loading fails with both
lists.  Nothing is read twice; what a place keeps is its own affair, and memory holds one other tensor at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from vllm import ops
from vllm.errors import ModelError
from vllm.loader.files import abbreviate
from vllm.weights import Window

_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
"""How the first checkpoints of bert, converted from TensorFlow, call the weights of a norm."""


@torch.no_grad()
def fill(
    windows: Iterable[Window],
    tensors: Iterable[tuple[str, Tensor]],
    ignored: Sequence[str] = (),
    *,
    where: str,
    prefixes: Sequence[str] = (),
) -> None:
    """Copy the checkpoint's tensors into the windows of their names.

    `ignored` holds shell-style patterns of names that the model has no use for, `where` names the checkpoint in
    messages.  `prefixes` are what a checkpoint's names may lack at the front: a base model saved without its head has
    "h.0.ln_1.weight" where the windows say "transformer.h.0.ln_1.weight".  A name is first taken as it is.

    Raises ModelError for a wrong shape, a NaN or infinite weight, a name that comes twice, a window left empty and a
    name that nothing explains.
    """
    places: dict[str, list[Window]] = defaultdict(list)
    for window in windows:
        places[window.name].append(window)

    filled: set[str] = set()
    unknown: list[str] = []
    for stored_name, tensor in tensors:
        names = _spellings(stored_name, prefixes)
        name = next((name for name in names if name in places), None)
        if name is None:
            if not any(fnmatchcase(name, pattern) for name in names for pattern in ignored):
                unknown.append(stored_name)
            continue
        if name in filled:
            raise ModelError(f"{where}: {stored_name} comes twice; which of the two is meant cannot be known")
        for window in places[name]:
            _put(window, tensor, where)
        filled.add(name)
    _check_complete(places, filled, unknown, where)


def _spellings(stored_name: str, prefixes: Sequence[str]) -> list[str]:
    """Return what a stored name may be called by a window, most literal first."""
    ending = next((ending for ending in _OLD_ENDINGS if stored_name.endswith(ending)), None)
    names = [stored_name]
    if ending is not None:
        names.append(stored_name.removesuffix(ending) + _OLD_ENDINGS[ending])
    return [*names, *(prefix + name for prefix in prefixes for name in names)]


def _put(window: Window, tensor: Tensor, where: str) -> None:
    place = window.place
    _check_kind(window, tensor, where)
    try:
        part = window.cut(tensor) if window.cut else tensor
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"{where}: {window.name} has the shape {list(tensor.shape)}, which cannot be cut for the model: {error}"
        ) from error
    if tuple(part.shape) != place.shape:
        cut = f", {list(part.shape)} after cutting" if window.cut else ""
        raise ModelError(
            f"{where}: {window.name} has the shape {list(tensor.shape)}{cut}; the model expects {list(place.shape)}. "
            "Do config.json and the weights belong together?"
        )
    rounded = part.to(place.dtype)
    if rounded.is_floating_point() and not ops.all_finite(rounded):
        raise ModelError(f"{where}: {window.name} {_what_is_wrong(part, place.dtype)}")
    place.put(rounded)


def _check_kind(window: Window, tensor: Tensor, where: str) -> None:
    """Refuse numbers that mean something else than their value: quantized weights need their scales."""
    source, target = tensor.dtype, window.place.dtype
    packed = source.itemsize == 1 and source != target
    if packed or source.is_floating_point != target.is_floating_point:
        raise ModelError(
            f"{where}: {window.name} is stored as {source}, the model computes with {target}: quantized checkpoints "
            "are not supported; use the model's original weights"
        )


def _what_is_wrong(part: Tensor, dtype: torch.dtype) -> str:
    if ops.all_finite(part):
        return f"has values beyond the range of {dtype}; use dtype='bfloat16' or 'float32'"
    return "holds NaN or infinite values: the checkpoint is damaged; fetch it again"


def _check_complete(places: dict[str, list[Window]], filled: set[str], unknown: list[str], where: str) -> None:
    missing = [
        name
        for name, windows in places.items()
        if name not in filled and not all(window.optional for window in windows)
    ]
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} weights of the model are not in it: {abbreviate(missing)}")
    if unknown:
        complaints.append(f"{len(unknown)} names of it are unknown to the model: {abbreviate(unknown)}")
    if complaints:
        raise ModelError(f"{where}: the checkpoint and its config.json do not fit; {'; '.join(complaints)}")
