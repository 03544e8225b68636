"""Every living sequence's tokens, prompt and output, and the ids and positions of a step's tokens made from them.

    tokens   [slots, max_model_len + 1]

They lie where they are chosen: on the CPU a step is laid out by the host, on another device by the device, so that the host need
not wait for the tokens of one step to prepare the next.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vllm.messages import Row
from vllm.ops.memory import zeros
from vllm.ops.parallel import ALONE, Group
from vllm.ops.staging import send, sent


class Tokens(Protocol):
    """The tokens of all slots, and those of a step."""

    tokens: Tensor
    """[slots, L]"""
    token_ids: Tensor
    """[T] int64 of the step"""
    token_types: Tensor
    """[T] int64: which of a pair of texts a token is of"""
    positions: Tensor
    """[T] int64"""

    def write(self, slot: int, first: int, token_ids: list[int]) -> None:
        """Write tokens that the host knows, from a position on."""

    def append(self, slots: list[int], ends: list[int], chosen: list[int] | Tensor) -> None:
        """Write one chosen token for each of some slots."""

    def lay(self, rows: list[Row], stops: list[int]) -> None:
        """Lay the rows' tokens and positions one after another; row r's end at stops[r]."""

    def lay_types(self, types: np.ndarray) -> None:
        """Say which of a pair of texts the step's first tokens are of.  [T]"""


class HostTokens:
    """Tokens in main memory, where the CPU computes."""

    def __init__(self, num_slots: int, max_model_len: int, max_step_tokens: int) -> None:
        self.tokens = zeros(num_slots, max_model_len + 1, dtype=torch.int64, device=torch.device("cpu"))
        self.token_ids, self.token_types, self.positions = torch.zeros(3, max_step_tokens, dtype=torch.int64)
        self._tokens = self.tokens.numpy()  # the same memory: numpy finds its way about small arrays sooner
        self._positions = np.arange(max_model_len + 1)

    def write(self, slot: int, first: int, token_ids: list[int]) -> None:
        self._tokens[slot, first : first + len(token_ids)] = token_ids

    def append(self, slots: list[int], ends: list[int], chosen: list[int] | Tensor) -> None:
        for slot, end, token in zip(slots, ends, chosen, strict=True):
            self._tokens[slot, end] = token

    def lay(self, rows: list[Row], stops: list[int]) -> None:
        """Slices are copied row by row: after a forward pass has emptied the processor's caches, numpy's indexing with
        arrays takes longer for a few rows than this does (measured: 123 against 60 µs for one)."""
        token_ids, positions = self.token_ids.numpy(), self.positions.numpy()
        for row, stop in zip(rows, stops, strict=True):
            first, end = stop - row.count, row.start + row.count
            token_ids[first:stop] = self._tokens[row.slot, row.start : end]
            positions[first:stop] = self._positions[row.start : end]

    def lay_types(self, types: np.ndarray) -> None:
        self.token_types.numpy()[: len(types)] = types


class DeviceTokens:
    """Tokens in a device's memory."""

    def __init__(
        self, num_slots: int, max_model_len: int, max_step_tokens: int, device: torch.device, group: Group = ALONE
    ) -> None:
        """Where a group computes, what its first process chooses holds for all."""
        self.device = device
        self.group = group
        self.tokens = torch.zeros(num_slots, max_model_len + 1, dtype=torch.int32, device=device)
        self.token_ids, self.token_types, self.positions = torch.zeros(
            3, max_step_tokens, dtype=torch.int64, device=device
        )

    def write(self, slot: int, first: int, token_ids: list[int]) -> None:
        send(np.array(token_ids, dtype=np.int32), self.tokens[slot, first : first + len(token_ids)])

    def append(self, slots: list[int], ends: list[int], chosen: list[int] | Tensor) -> None:
        places = sent(np.array([slots, ends]), self.device)
        tokens = torch.as_tensor(chosen, dtype=torch.int32, device=self.device)
        self.tokens[places[0], places[1]] = self.group.of_first(tokens)

    def lay(self, rows: list[Row], stops: list[int]) -> None:
        counts = np.array([row.count for row in rows])
        starts = np.array([row.start for row in rows]) - (np.array(stops) - counts)
        slots = np.repeat([row.slot for row in rows], counts)
        positions = np.arange(len(slots)) + np.repeat(starts, counts)
        places = sent(np.stack((slots, positions)), self.device)
        self.positions[: len(slots)] = places[1]
        self.token_ids[: len(slots)] = self.tokens[places[0], places[1]]

    def lay_types(self, types: np.ndarray) -> None:
        send(types, self.token_types[: len(types)])
