"""The package's logger: one line per fact, to stderr, at the level of VLLM_LOGGING_LEVEL."""

from __future__ import annotations

import logging

from vllm import env

_ROOT = "vllm"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module.  The first call configures the package's root logger,
    unless VLLM_CONFIGURE_LOGGING=0 or the application gave it a handler before."""
    root = logging.getLogger(_ROOT)
    if not root.handlers and env.configure_logging():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(env.logging_level())
        root.propagate = False
    return logging.getLogger(name)


_WARNED: set[str] = set()


def warn_once(logger: logging.Logger, message: str) -> None:
    """Log a warning the first time this very message is given in the process."""
    if message not in _WARNED:
        _WARNED.add(message)
        logger.warning(message)
