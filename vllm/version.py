"""The version.  Clients gate on it, so it names the interface level that we speak, not our age."""

__version__ = "0.31.0"
__version_tuple__ = (0, 31, 0)
