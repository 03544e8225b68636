"""Processes that compute one model together, each with its share of every matrix (tensor parallelism).

    qkv, gate and up     cut by rows: each process has some of the heads, some of the inner elements
    out, down            cut by width, since their input is; what the processes have is added up
    head                 cut by rows; what the processes have is laid side by side

https://arxiv.org/abs/1909.08053
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vllm.env import forbid_multicast
from vllm.errors import ConfigError
from vllm.logging import get_logger

logger = get_logger(__name__)


@dataclass(slots=True)
class NextNorm:
    """The root mean square norm that reads a sum next.  Whoever adds up may make it too, while the numbers are at hand."""

    weight: Tensor
    eps: float
    offset: float
    made: tuple[Tensor, Tensor] | None = None
    """A sum, and the norm of it"""

    def take(self, x: Tensor) -> Tensor | None:
        """Return the norm of x, if it was made with x."""
        made, self.made = self.made, None
        return made[1] if made is not None and made[0] is x else None


class Shortcut(Protocol):
    """A way for small tensors that is faster than torch's; see `ops.triton.peers`."""

    def takes(self, x: Tensor) -> bool:
        """Return whether such a tensor may go that way.  All processes come to the same answer."""

    def add_up(self, x: Tensor, norm: NextNorm | None = None) -> Tensor:
        """Add up what the processes have, and make the norm of it; `x` keeps what this one has."""

    def abandon(self) -> None:
        """End whatever waits for the other processes."""


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a model, and which of them this is."""

    rank: int = 0
    size: int = 1
    shortcut: Shortcut | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int, what: str) -> int:
        """Return how many of something each process has.  Raises ConfigError if they can't have equally many."""
        if count % self.size:
            raise ConfigError(
                f"tensor_parallel_size={self.size} can't cut {what}, of which there are {count}; use a number that "
                f"divides {count}"
            )
        return count // self.size

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Return this process's share of a tensor."""
        return x.chunk(self.size, dim)[self.rank]

    def add_up(self, x: Tensor, norm: NextNorm | None = None) -> Tensor:
        """Add up what the processes have.  `x` is not used any more; `norm` reads the sum next."""
        if self.shortcut is not None and self.shortcut.takes(x):
            return self.shortcut.add_up(x, norm)
        if self.size > 1:
            _distributed().all_reduce(x)
        return x

    def side_by_side(self, x: Tensor) -> Tensor:
        """Lay what the processes have side by side.  [T, N] -> [T, size N]"""
        if self.size == 1:
            return x
        parts = torch.empty(self.size * len(x), *x.shape[1:], dtype=x.dtype, device=x.device)
        gather = (
            getattr(_distributed(), "all_gather_single", None) or _distributed().all_gather_into_tensor
        )  # its old name
        gather(parts, x.contiguous())
        return parts.unflatten(0, (self.size, len(x))).transpose(0, 1).flatten(1)

    def greatest(self, peaks: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Find each row's greatest number, NaN if there is one, and the least id that has it, from what each process found in
        its share.  [R] float32, [R] int32 -> the same"""
        if self.size == 1:
            return peaks, ids
        pairs = self.side_by_side(torch.stack((peaks.view(torch.int32), ids), dim=1)).unflatten(1, (-1, 2))
        all_peaks, all_ids = pairs[..., 0].contiguous().view(torch.float32), pairs[..., 1]
        best = all_peaks.amax(dim=1)
        on_top = (all_peaks == best[:, None]) | all_peaks.isnan()
        return best, torch.where(on_top, all_ids, torch.iinfo(torch.int32).max).amin(dim=1)

    def of_first(self, x: Tensor) -> Tensor:
        """Give all processes what the first one has, in place."""
        if self.size > 1:
            _distributed().broadcast(x, 0)
        return x

    def least(self, number: int, device: torch.device) -> int:
        """Return the least of the processes' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor([number], device=device)
        _distributed().all_reduce(found, _distributed().ReduceOp.MIN)
        return int(found)


ALONE = Group()


def join(rank: int, size: int, device: torch.device, meeting: str) -> Group:
    """Meet the other processes.  `meeting` is a file that all of them can reach and that is not there yet."""
    if size > 1:
        forbid_multicast()
        _distributed().init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=size,
            device_id=device if device.type == "cuda" else None,
        )
    group = Group(rank, size)
    return group if device.type == "cpu" or size == 1 else Group(rank, size, _shortcut(group, device))


def _shortcut(group: Group, device: torch.device) -> Shortcut | None:
    """Return the way over each other's memory, if all GPUs of the group have it."""
    from vllm.ops.triton.peers import meet

    try:
        shortcut = meet(group.rank, group.size, device)
    except (RuntimeError, ImportError, AttributeError) as error:
        logger.warning("the GPUs can't write into each other's memory, so steps are slower: %s", error)
        shortcut = None
    return shortcut if group.least(shortcut is not None, device) else None


def leave(group: Group) -> None:
    """Part from the other processes."""
    if group.size > 1 and _distributed().is_initialized():
        _distributed().destroy_process_group()


def abandon(group: Group) -> None:
    """End whatever waits for the other processes, which will not come."""
    if group.shortcut is not None:
        group.shortcut.abandon()
    if group.size > 1 and _distributed().is_initialized():
        _distributed().group.WORLD.abort()


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed
