"""From a model's name to the folder that holds its files.

    name ─▶ redirected?  (VLLM_MODEL_REDIRECT_PATH)
         ─▶ a folder?    itself
         ─▶ else         a repository of the Hugging Face Hub: downloaded, or taken from the local cache

Only the files that serving needs are fetched: configuration, tokenizer, and one copy of the weights.
"""

from __future__ import annotations

import difflib
import errno
from dataclasses import dataclass
from pathlib import Path

from vllm import env
from vllm.errors import ConfigError, ModelError
from vllm.loader.sentence_transformers import module_folders
from vllm.logging import get_logger

logger = get_logger(__name__)

_TEXT_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py", "artifact.metadata"]
_SAFETENSORS = ["*.safetensors"]
_PICKLES = ["pytorch_model*.bin"]
# Second copies of the weights: the trainer's own format, and exports for other engines in subfolders.
_SECOND_COPIES = ["consolidated*", "*/*.safetensors", "*/*.bin", "*/*.json"]
_MODULE_FILES = ["config.json", "model.safetensors", "pytorch_model.bin"]

_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)


def find_model(
    name: str,
    revision: str | None = None,
    download_dir: str | None = None,
    hf_token: bool | str | None = None,
    load_format: str = "auto",
) -> Path:
    """Return the folder of the model called `name`: a path, or a repository of the Hugging Face Hub.

    `revision` (branch, tag or commit), `download_dir` (instead of the Hub's cache), `hf_token` and `load_format`
    (which weights to fetch, as for `weight_files`; "dummy": none) only matter for the Hub.  Raises ModelError if there is no such model, or if it cannot be reached.
    """
    if not name:
        raise ModelError("the model's name is empty; pass a folder, or a name on the Hugging Face Hub")
    name = _redirected(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file, and a model is a folder with config.json and weights; pass {path.parent}")
    if env.use_modelscope():
        raise ModelError(
            f"{name}: names from ModelScope (VLLM_USE_MODELSCOPE=1) are not supported yet; "
            "download the model and pass its local folder"
        )
    if not _may_be_repository(name):
        raise ModelError(f"no such directory: {name}.{_similar_folders(path)}")
    return _from_hub(_Repository(name, revision, hf_token, load_format), download_dir)


def _redirected(name: str) -> str:
    try:
        redirects = env.model_redirects()
    except OSError as error:
        raise ConfigError(f"VLLM_MODEL_REDIRECT_PATH cannot be read: {error}") from error
    if name not in redirects:
        return name
    logger.info("model %s is read from %s (VLLM_MODEL_REDIRECT_PATH)", name, redirects[name])
    return redirects[name]


def _may_be_repository(name: str) -> bool:
    """Whether `name` has the form of a repository id: `owner/name` or `name`, and nothing that only a path has."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not name.startswith("~")


def _similar_folders(path: Path) -> str:
    """Return " Similar: …" when the parent folder has folders of a similar name, else an empty string."""
    try:
        siblings = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, siblings, n=3)
    return f" Similar: {', '.join(str(path.parent / name) for name in close)}" if close else ""


@dataclass(frozen=True, slots=True)
class _Repository:
    """What is wanted of the Hub."""

    name: str
    revision: str | None
    token: bool | str | None
    load_format: str


def _from_hub(wanted: _Repository, download_dir: str | None) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = wanted.name
    cache = Path(download_dir or constants.HF_HUB_CACHE).expanduser()
    page = f"https://huggingface.co/{name}"
    try:
        return _download(wanted, cache)
    except GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms at {page}, then pass hf_token or run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        similar = _similar_folders(Path(name))
        raise ModelError(
            f"{name}: no such directory, and no such repository on the Hugging Face Hub, or a private one; "
            f"check the name, or pass hf_token.{similar}"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(
            f"{name} has no revision {wanted.revision!r}; see {page}/tree/main for its branches"
        ) from error
    except IncompleteSnapshotError as error:
        raise ModelError(
            f"{name} is only partly in the local cache {cache}, and the Hugging Face Hub cannot be reached; "
            "run again with a network to fetch the rest"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(_unreachable(wanted, cache)) from error
    except (HfHubHTTPError, OSError) as error:
        hint = "; choose another folder with download_dir" if error.errno in _NO_PLACE else ""
        raise ModelError(f"{name} cannot be downloaded to {cache}: {_first_line(error)}{hint}") from error


def _download(wanted: _Repository, cache: Path) -> Path:
    """Fetch the repository, or what is new in it.  "auto" fetches pickled weights only where there are no others."""
    folder = _download_model(wanted, cache)
    if modules := module_folders(folder):
        _fetch(wanted, cache, [f"{path}/{name}" for path in modules for name in _MODULE_FILES], [])
    return folder


def _download_model(wanted: _Repository, cache: Path) -> Path:
    def fetch(weights: list[str]) -> Path:
        return _fetch(wanted, cache, _TEXT_FILES + weights, _SECOND_COPIES)

    if wanted.load_format == "dummy":
        return fetch([])
    if wanted.load_format == "pt":
        return fetch(_PICKLES)
    folder = fetch(_SAFETENSORS)
    if wanted.load_format == "safetensors" or any(folder.glob("*.safetensors")):
        return folder
    return fetch(_PICKLES)


def _fetch(wanted: _Repository, cache: Path, patterns: list[str], ignored: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        wanted.name,
        revision=wanted.revision,
        cache_dir=cache,
        token=wanted.token,
        allow_patterns=patterns,
        ignore_patterns=ignored,
    )
    return Path(folder)


def _unreachable(wanted: _Repository, cache: Path) -> str:
    cached = cached_models(cache)
    here = f"The cache has: {', '.join(cached)}." if cached else "The cache is empty."
    what = f"{wanted.name} (revision {wanted.revision})" if wanted.revision else wanted.name
    return (
        f"{what}: no such directory, not in the local cache {cache}, and the Hugging Face Hub cannot be reached "
        f"(no network, or HF_HUB_OFFLINE is set). {here}{_similar_folders(Path(wanted.name))}"
    )


def cached_models(cache: Path) -> list[str]:
    """Return the names of the models in a Hub cache, sorted.  Nothing is read but folder names."""
    snapshots = cache.glob("models--*/snapshots/*/config.json")
    return sorted({path.parents[2].name.removeprefix("models--").replace("--", "/", 1) for path in snapshots})


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
