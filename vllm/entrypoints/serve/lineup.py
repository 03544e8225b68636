"""The models of one server: each with options of its own, and the memory of a device shared out among them.

options of all ─────┐
a model's own ──────┴─▶ EngineArgs, names ─▶ ModelArgs
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from vllm.config import EngineArgs
from vllm.device import choose_device
from vllm.entrypoints.serve.settings import ServerArgs
from vllm.errors import ConfigError

DEFAULT_NAME = "default"
"""What the model inside the package is called."""
OWN = ("served_model_name", "unload_after")
"""The server's options that each model may have for itself, beside all those of the engine."""


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """One of the models that a server has."""

    engine: EngineArgs
    names: tuple[str, ...]
    """What requests may call it; the first is what answers carry."""
    unload_after: float = 0.0
    """Seconds without a request after which it is unloaded; 0: never."""


@dataclass(slots=True)
class Room:
    """A device's memory, in bytes, which several models are to have together."""

    free: int
    """What was free before the first of them was loaded.  Each has a share of that, whenever it is started."""
    taken: int = 0
    """What they may take.  The system shows less: it gives out main memory when that is written to for the first time."""

    def take(self, num_bytes: int) -> None:
        """Take a part.  Raises ConfigError where that is more than there is."""
        self.taken += num_bytes
        if self.taken > self.free:
            raise ConfigError(
                f"with the models before it, it may take {self.taken / 2**30:.1f} GiB of memory, and {self.free / 2**30:.1f} "
                "GiB were free; lower kv_cache_memory_bytes or max_model_len, or serve fewer models"
            )


class Options(NamedTuple):
    """What a user said: fields of EngineArgs and of ServerArgs, by name."""

    engine: Mapping[str, Any]
    server: Mapping[str, Any]


def one_model(engine: EngineArgs, server: ServerArgs) -> ModelArgs:
    """Return the model of a server that has no other."""
    names = server.served_model_name or [engine.model or DEFAULT_NAME]
    return ModelArgs(engine, tuple(names), server.unload_after)


def line_up(shared: Options, models: Sequence[Options]) -> list[ModelArgs]:
    """Return the models of a server.  `shared` is what holds for all of them, where one says nothing else.

    Raises ConfigError for two models of one name, and for more memory than there is.
    """
    if len(models) > 1 and "served_model_name" in shared.server:
        raise ConfigError(
            f"served_model_name={shared.server['served_model_name']!r} is for one model, and {len(models)} are served; "
            """give each its own, as in --model '{"model": "NAME", "served_model_name": "SHORT"}'"""
        )
    made = [
        one_model(EngineArgs(**{**shared.engine, **own.engine}), ServerArgs(**{**shared.server, **own.server}))
        for own in models
    ]
    _check_names(made)
    return made if len(made) == 1 else _shared_out(made, ["gpu_memory_utilization" in own.engine for own in models])


def _check_names(models: Sequence[ModelArgs]) -> None:
    names = [name for model in models for name in model.names]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"two models are called {twice[0]!r}; give one another served_model_name")


def _shared_out(models: Sequence[ModelArgs], has_own: Sequence[bool]) -> list[ModelArgs]:
    """Give each model its share of its device's memory: its own, or as much as others of what one model alone would get."""
    from vllm.engine.setup import memory_share

    devices = [choose_device(model.engine.device) for model in models]
    own: defaultdict[str, float] = defaultdict(float)
    others: defaultdict[str, int] = defaultdict(int)
    for model, device, is_own in zip(models, devices, has_own, strict=True):
        own[device] += memory_share(model.engine) if is_own else 0.0
        others[device] += not is_own
    made = []
    for model, device, is_own in zip(models, devices, has_own, strict=True):
        share = memory_share(model.engine)
        if not is_own:
            share = (share - own[device]) / others[device]
        if share <= 0 or own[device] > 1 + 1e-9:
            raise ConfigError(
                f"gpu_memory_utilization of the models on this {device} adds up to {own[device]:g}, which leaves nothing "
                f"for {model.names[0]}; lower it"
            )
        made.append(replace(model, engine=replace(model.engine, device=device, gpu_memory_utilization=share)))
    return made
