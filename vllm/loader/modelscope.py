"""Repositories of ModelScope, through its own client, which is an extra of this package.

Like the Hub's, the client downloads in parallel under a bar, goes on where a connection was cut (or the process killed),
checks what came, and locks each file.  It goes by MODELSCOPE_CACHE, MODELSCOPE_ENDPOINT and MODELSCOPE_API_TOKEN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vllm import env
from vllm.errors import ConfigError, ModelError
from vllm.loader.download import Repository
from vllm.logging import get_logger

logger = get_logger(__name__)


class ModelScope:
    """A repository of ModelScope, and where it is kept."""

    def __init__(self, repository: Repository, download_dir: str | None) -> None:
        self.repository = repository
        self.cache = None if download_dir is None else Path(download_dir).expanduser()
        self._client = _client()

    def fetch(self, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
        """Fetch files; without a network, take what is in the cache.

        Raises ModelError, in one line, for whatever keeps them from coming.
        """
        try:
            return self._fetch(patterns, ignored, offline=env.hub_offline())
        except ConnectionError:
            logger.warning("%s: ModelScope cannot be reached; the local cache is searched", self.repository)
        return self._fetch(patterns, ignored, offline=True)

    def _fetch(self, patterns: Sequence[str], ignored: Sequence[str], offline: bool) -> Path:
        try:
            folder = self._client(
                self.repository.name,
                revision=self.repository.revision,
                cache_dir=self.cache,
                allow_patterns=list(patterns),
                ignore_patterns=list(ignored),
                local_files_only=offline,
            )
        except ConnectionError:
            raise
        except Exception as error:  # its own errors, and those of what it sends by
            raise ModelError(self._explain(error, offline)) from error
        return Path(folder)

    def _explain(self, error: BaseException, offline: bool) -> str:
        from modelscope_hub import errors

        wanted, similar = self.repository, self.repository.similar
        error = (
            error.__cause__ if isinstance(error.__cause__, errors.HubError) else error
        )  # the rest is for old callers
        if isinstance(error, errors.FileDownloadError):
            error = next(iter(error.failed_files.values()), error)
        if offline:
            return (
                f"{wanted}: no such directory, not in ModelScope's local cache, and ModelScope cannot be reached "
                f"(no network, or HF_HUB_OFFLINE is set).{similar}"
            )
        if isinstance(error, errors.NotExistError):
            return f"{wanted}: no such directory, and no such repository or revision on ModelScope; check the name.{similar}"
        if isinstance(error, errors.AuthenticationError | errors.PermissionDeniedError):
            return f"{wanted} is not open to all: accept its terms on ModelScope, then set MODELSCOPE_API_TOKEN to your token"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{wanted} cannot be downloaded from ModelScope: {reason}"


def _client() -> Callable[..., Any]:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ConfigError(
            f"VLLM_USE_MODELSCOPE is set, and the package modelscope cannot be imported ({error}): "
            "pip install 'vllm[modelscope]', or unset it to take models from the Hugging Face Hub"
        ) from error
    return snapshot_download
