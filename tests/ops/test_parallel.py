"""What a group of processes finds together."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm.ops.parallel import Group


class Gathered(Group):
    """A process of three that knows already what the others have."""

    others: tuple[Tensor, ...]

    def side_by_side(self, x: Tensor) -> Tensor:
        return torch.cat((x, *self.others), dim=1)


def pairs_of(peaks: list[float], ids: list[int]) -> Tensor:
    return torch.stack((torch.tensor(peaks).view(torch.int32), torch.tensor(ids, dtype=torch.int32)), dim=1)


def test_the_greatest_of_all_shares_is_found() -> None:
    nan, inf = float("nan"), float("inf")
    group = Gathered(0, 3)
    object.__setattr__(
        group,
        "others",
        (
            pairs_of([2.0, 5.0, nan, -inf, 1.0], [10, 11, 12, 13, 14]),
            pairs_of([0.0, 5.0, 1.0, -inf, nan], [20, 21, 22, 23, 24]),
        ),
    )
    peaks, ids = group.greatest(torch.tensor([1.0, -1.0, 9.0, -inf, 7.0]), torch.arange(5, dtype=torch.int32))
    torch.testing.assert_close(peaks, torch.tensor([2.0, 5.0, nan, -inf, nan]), equal_nan=True)
    assert ids.tolist() == [10, 11, 12, 3, 24]
