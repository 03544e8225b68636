"""Code of other packages that is run before a model is looked at: plugins, by the entry-point group of the interface.

    [project.entry-points."vllm.general_plugins"]
    tidal = "tidal:register"          # a function without parameters

They are run once in every process that resolves a configuration, a server's front and its engine among them.  The front has
no torch, and need not import it for a plugin that registers architectures by text.  VLLM_PLUGINS names those to run; without
it, all are.
"""

from __future__ import annotations

import functools
from importlib import metadata

from vllm import env
from vllm.errors import did_you_mean
from vllm.logging import get_logger

logger = get_logger(__name__)

GROUP = "vllm.general_plugins"


@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Run the plugins that are installed and wanted.  Returns the names of those that ran.

    What a plugin raises is reported with its name and does not keep the others from running.
    """
    wanted = env.plugins()
    if wanted == ():
        return ()
    found = {point.name: point for point in metadata.entry_points(group=GROUP)}
    for name in wanted or ():
        if name not in found:
            logger.warning("VLLM_PLUGINS: no plugin %r is installed.%s", name, did_you_mean(name, found))
    chosen = [point for name, point in sorted(found.items()) if wanted is None or name in wanted]
    return tuple(point.name for point in chosen if _run(point))


def _run(point: metadata.EntryPoint) -> bool:
    try:
        point.load()()
    except Exception:  # it is somebody else's code
        logger.exception("the plugin %r (%s) failed and is left out", point.name, point.value)
        return False
    logger.info("plugin %s is loaded", point.name)
    return True
