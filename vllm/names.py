"""Keyword names of the interface: those we have, those we lack, and those that are nobody's."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from vllm.errors import ConfigError, did_you_mean
from vllm.logging import get_logger, warn_once

logger = get_logger(__name__)
_T = TypeVar("_T")


def take_names(
    unsupported: Mapping[str, tuple[Any, ...]] | None = None, without_effect: Mapping[str, str] | None = None
) -> Callable[[type[_T]], type[_T]]:
    """Return a class decorator that lets a dataclass take more keywords than its fields.

    `unsupported` has the values that mean "not used" for names whose feature is missing: any other value is a
    ConfigError.  `without_effect` has the reason for names that cannot matter here: they warn once.  An unknown name is a
    TypeError that offers the nearest.
    """
    lacking, idle = unsupported or {}, without_effect or {}

    def decorate(cls: type[_T]) -> type[_T]:
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        init = cls.__init__

        @functools.wraps(init)
        def checked(self: _T, *args: Any, **given: Any) -> None:
            for name in [name for name in given if name not in known]:
                value = given.pop(name)
                if name in lacking:
                    if value not in lacking[name]:
                        raise ConfigError(f"{name}={value!r} is not supported by this version; leave it out")
                elif name in idle:
                    warn_once(logger, f"{name}={value!r} has no effect here: {idle[name]}")
                else:
                    hint = did_you_mean(name, [*known, *lacking, *idle])
                    raise TypeError(f"{cls.__name__} has no parameter {name!r}.{hint}")
            init(self, *args, **given)

        cls.__init__ = checked  # type: ignore[method-assign, assignment]
        return cls

    return decorate


def named(where: str) -> Any:
    """Return what is called "package.module:name".  Raises ConfigError if there is nothing of that name."""
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module's own code may raise anything
        raise ConfigError(
            f"{where} cannot be imported ({type(error).__name__}: {error}); is its package installed?"
        ) from error
