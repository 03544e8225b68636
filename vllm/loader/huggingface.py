"""Repositories of the Hugging Face Hub, through its own client.

The client downloads in parallel under a bar, goes on where a connection was cut, checks sizes, and locks each file, so that
processes that want the same one share it.  A process that is killed loses the files it was at.  It goes by HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the usual
variables for proxies.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from vllm.errors import ModelError, did_you_mean
from vllm.loader.download import Repository

_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


class HuggingFace:
    """A repository of the Hub, and where it is kept."""

    def __init__(self, repository: Repository, download_dir: str | None, token: bool | str | None) -> None:
        from huggingface_hub import constants

        self.repository = repository
        self.cache = Path(download_dir or constants.HF_HUB_CACHE).expanduser()
        self.token = token
        self.page = f"{constants.ENDPOINT}/{repository.name}"
        self._commit: str | None = None

    def fetch(self, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
        """Fetch files.  Raises ModelError, in one line, for whatever keeps them from coming."""
        from huggingface_hub import snapshot_download

        try:
            folder = snapshot_download(
                self.repository.name,
                revision=self._commit or self.repository.revision,
                cache_dir=self.cache,
                token=self.token,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
            )
        except Exception as error:  # the client's errors, and those of what it sends by, which changes with its version
            raise ModelError(self._explain(error)) from error
        self._commit = Path(folder).name  # what is fetched next is of the same commit, whatever is pushed meanwhile
        return Path(folder)

    def _explain(self, error: Exception) -> str:
        from huggingface_hub import errors

        name = self.repository.name
        match error:
            case errors.GatedRepoError():
                return f"{name} is gated: accept its terms at {self.page}, then pass hf_token or run `hf auth login`"
            case errors.RepositoryNotFoundError():
                near = did_you_mean(name, cached_models(self.cache))
                return (
                    f"{name}: no such directory, and no such repository on the Hugging Face Hub, or a private one; "
                    f"check the name, or pass hf_token.{near}{self.repository.similar}"
                )
            case errors.RevisionNotFoundError():
                revision = self.repository.revision
                return f"{name} has no revision {revision!r}; see {self.page}/tree/main for its branches"
            case errors.IncompleteSnapshotError():
                return (
                    f"{name} is only partly in the local cache {self.cache}, and {_why_not(error)}; "
                    "run again with a network to fetch the rest"
                )
            case errors.LocalEntryNotFoundError():
                return self._not_here(error)
        hint = "; choose another folder with download_dir" if getattr(error, "errno", None) in _NO_PLACE else ""
        return f"{name} cannot be downloaded to {self.cache}: {_first_line(error)}{hint}"

    def _not_here(self, error: Exception) -> str:
        cached = cached_models(self.cache)
        here = f"The cache has: {', '.join(cached)}." if cached else "The cache is empty."
        near = did_you_mean(self.repository.name, cached)
        return (
            f"{self.repository}: no such directory, not in the local cache {self.cache}, and {_why_not(error)}. "
            f"{here}{near}{self.repository.similar}"
        )


def cached_models(cache: Path) -> list[str]:
    """Return the names of the models in a Hub cache, sorted.  Nothing is read but folder names."""
    snapshots = cache.glob("models--*/snapshots/*/config.json")
    return sorted({path.parents[2].name.removeprefix("models--").replace("--", "/", 1) for path in snapshots})


def _why_not(error: Exception) -> str:
    """Say why only the cache was left to look in."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    cause = error.__cause__
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(cause, HfHubHTTPError):
        return f"{constants.ENDPOINT} answers {cause.response.status_code}: {_first_line(cause)}"
    return f"{constants.ENDPOINT} cannot be reached"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
