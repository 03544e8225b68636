"""Fill the windows of a model from a checkpoint, in one walk over its tensors.

    checkpoint                          windows
    "…q_proj.weight"  ── cut ── copy ──▶ qkv[:q]
    "…lm_head.weight" ── ignored

At the end every window has been filled and every name of the checkpoint is explained, or loading fails with both
lists.  Nothing is read twice, and no tensor is kept: besides the windows, memory holds one tensor at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from vllm.errors import ModelError
from vllm.loader.read import abbreviate
from vllm.weights import Window

_CHUNK = 1 << 20  # elements that are checked for NaN at once: 4 MB in float32, which stays in a core's cache


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
    assert not (pair := _overlapping(places)), f"windows overlap: {pair}"

    filled: set[str] = set()
    unknown: list[str] = []
    for stored_name, tensor in tensors:
        names = [stored_name, *(prefix + stored_name for prefix in prefixes)]
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


def _put(window: Window, tensor: Tensor, where: str) -> None:
    target = window.target
    _check_kind(window, tensor, where)
    try:
        part = window.cut(tensor) if window.cut else tensor
    except (RuntimeError, IndexError, ValueError) as error:
        raise ModelError(
            f"{where}: {window.name} has the shape {list(tensor.shape)}, which cannot be cut for the model: {error}"
        ) from error
    if part.shape != target.shape:
        cut = f", {list(part.shape)} after cutting" if window.cut else ""
        raise ModelError(
            f"{where}: {window.name} has the shape {list(tensor.shape)}{cut}; the model expects {list(target.shape)}. "
            "Do config.json and the weights belong together?"
        )
    target.copy_(part)
    if target.is_floating_point() and not _finite(target):
        raise ModelError(f"{where}: {window.name} {_what_is_wrong(part, target)}")


def _check_kind(window: Window, tensor: Tensor, where: str) -> None:
    """Refuse numbers that mean something else than their value: quantized weights need their scales."""
    source, target = tensor.dtype, window.target.dtype
    packed = source.itemsize == 1 and source != target
    if packed or source.is_floating_point != target.is_floating_point:
        raise ModelError(
            f"{where}: {window.name} is stored as {source}, the model computes with {target}: quantized checkpoints "
            "are not supported; use the model's original weights"
        )


def _finite(tensor: Tensor) -> bool:
    """Whether all values are finite, without a second tensor of its size.

    A sum is much cheaper than a test of every value, and is not finite if one of its terms isn't; where it overflows
    without such a term, the values are looked at one by one.
    """
    rows = tensor.reshape(1) if tensor.dim() == 0 else tensor
    rows_at_once = max(1, _CHUNK * rows.shape[0] // max(1, rows.numel()))
    for chunk in rows.split(rows_at_once):
        if not chunk.sum(dtype=torch.float32).isfinite() and not chunk.isfinite().all():
            return False
    return True


def _what_is_wrong(part: Tensor, target: Tensor) -> str:
    if _finite(part):
        return f"has values beyond the range of {target.dtype}; use dtype='bfloat16' or 'float32'"
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


def _overlapping(places: dict[str, list[Window]]) -> tuple[str, str] | None:
    """Return the names of two windows whose targets share memory; None if no two do."""
    by_storage: dict[tuple[torch.device, int], list[Window]] = defaultdict(list)
    for window in (window for windows in places.values() for window in windows):
        if window.target.numel():
            by_storage[window.target.device, window.target.untyped_storage().data_ptr()].append(window)
    for windows in by_storage.values():
        for one, other in _touching(windows):
            if _share_an_element(one.target, other.target):
                return one.name, other.name
    return None


def _touching(windows: list[Window]) -> Iterator[tuple[Window, Window]]:
    """Yield the pairs of windows of one storage whose ranges, from first to last element, intersect."""
    windows = sorted(windows, key=lambda window: _extent(window.target)[0])
    for index, window in enumerate(windows):
        end = _extent(window.target)[1]
        for other in windows[index + 1 :]:
            if _extent(other.target)[0] >= end:
                break
            yield window, other


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The first element of the storage that a view covers, and the one after the last."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return first, first + sum((size - 1) * int(stride) for size, stride in steps) + 1


def _share_an_element(one: Tensor, other: Tensor) -> bool:
    """Whether two interleaved views of a storage (columns of one matrix) have an element in common."""
    num_elements = max(_extent(one)[1], _extent(other)[1])
    marks = torch.zeros(num_elements, dtype=torch.bool)
    marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())
