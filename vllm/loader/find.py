"""From a model's name to the folder that holds its files.

name ─▶ redirected?  (VLLM_MODEL_REDIRECT_PATH)
     ─▶ a folder?    itself
     ─▶ else         a repository of the Hugging Face Hub, or of ModelScope (VLLM_USE_MODELSCOPE)
"""

from __future__ import annotations

import difflib
from pathlib import Path

from vllm import env
from vllm.errors import ConfigError, ModelError
from vllm.loader.download import Repository, download
from vllm.loader.huggingface import HuggingFace
from vllm.loader.modelscope import ModelScope
from vllm.logging import get_logger

logger = get_logger(__name__)


def find_model(
    name: str,
    revision: str | None = None,
    download_dir: str | None = None,
    hf_token: bool | str | None = None,
    load_format: str = "auto",
) -> Path:
    """Return the folder of the model called `name`: a path, or a repository that is downloaded or in the local cache.

    `revision` (branch, tag or commit), `download_dir` (instead of the usual cache), `hf_token` and `load_format` (which
    weights to fetch, as for `weight_files`; "dummy": none) only matter for a repository.  Raises ModelError if there is
    no such model, or if it cannot be reached.
    """
    if not name:
        raise ModelError("the model's name is empty; pass a folder, or a name on the Hugging Face Hub")
    name = _redirected(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file, and a model is a folder with config.json and weights; pass {path.parent}")
    if not _may_be_repository(name):
        raise ModelError(f"no such directory: {name}.{_similar_folders(path)}")
    repository = Repository(name, revision, load_format, similar=_similar_folders(path))
    if env.use_modelscope():
        return download(repository, ModelScope(repository, download_dir).fetch)
    return download(repository, HuggingFace(repository, download_dir, hf_token).fetch)


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
