"""The closed list of environment variables.  Nobody else in the package reads `os.environ`.

| variable | meaning |
|---|---|
| VLLM_LOGGING_LEVEL | DEBUG, INFO (default), WARNING, ERROR |
| VLLM_CONFIGURE_LOGGING | 0: leave the logging set-up to the application |
| VLLM_MODEL_REDIRECT_PATH | a file of `name path` lines: the model called `name` is read from `path` |
| VLLM_ALLOW_LONG_MAX_MODEL_LEN | 1: allow a max_model_len beyond what the checkpoint was made for |
| VLLM_CPU_KVCACHE_SPACE | GiB of KV cache on the CPU, where kv_cache_memory_bytes is not given; 0: what is computed |
| VLLM_CPU_KERNELS | torch: compute with plain torch; amx, avx512_bf16, avx512_vnni, avx2, portable: with these kernels; by default the best that run |
| OMP_NUM_THREADS | threads that compute; by default one per usable core |
| VLLM_API_KEY | a key that the server asks of its clients, beside those of --api-key |
| VLLM_USE_MODELSCOPE | 1 or true: model names are looked up on ModelScope |
| VLLM_PLUGINS | names of the plugins to run, with commas between; empty: none; unset: all that are installed |
| VLLM_IMAGE_FETCH_TIMEOUT, VLLM_VIDEO_FETCH_TIMEOUT, VLLM_AUDIO_FETCH_TIMEOUT | seconds that a medium may take to be fetched; 5, 30, 10 |
| VLLM_MEDIA_URL_ALLOW_REDIRECTS | 0: an address of a medium may not lead to another |
| HF_HUB_OFFLINE | 1: no network is used, here for ModelScope; the Hub's client reads it, and HF_HOME and the like, itself |
| VLLM_API_KEY, OPENAI_API_KEY | the key that commands with --url send; the first that is set |
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

from vllm.errors import ConfigError

_OURS = ("VLLM_", "HF_", "OMP_", "KMP_", "MKL_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH_", "PYTORCH_", "LD_PRELOAD")
_SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")


def _flag(name: str, default: bool) -> bool:
    value = os.environ.get(name)
    return default if value is None else value.strip().lower() in ("1", "true", "yes", "on")


def logging_level() -> str:
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()
    return level if isinstance(logging.getLevelName(level), int) else "INFO"


def configure_logging() -> bool:
    return _flag("VLLM_CONFIGURE_LOGGING", True)


def allow_long_max_model_len() -> bool:
    return _flag("VLLM_ALLOW_LONG_MAX_MODEL_LEN", False)


def use_modelscope() -> bool:
    return _flag("VLLM_USE_MODELSCOPE", False)


def plugins() -> tuple[str, ...] | None:
    """Return the names in VLLM_PLUGINS, or None when it is unset."""
    names = os.environ.get("VLLM_PLUGINS")
    return None if names is None else tuple(name for part in names.split(",") if (name := part.strip()))


def hub_offline() -> bool:
    return _flag("HF_HUB_OFFLINE", False)


def api_key() -> str | None:
    """Return VLLM_API_KEY, or None when it is unset or empty."""
    return os.environ.get("VLLM_API_KEY") or None


def cpu_kvcache_bytes() -> int | None:
    """Return VLLM_CPU_KVCACHE_SPACE in bytes, or None when it is unset or 0."""
    value = os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    try:
        size = float(value) if value else 0.0
    except ValueError:
        size = -1.0
    if not 0 <= size < math.inf:
        raise ConfigError(f"VLLM_CPU_KVCACHE_SPACE={value!r} is not a number of GiB; set one, as 4, or unset it")
    return int(size * 2**30) or None


_FETCH_SECONDS = {"image": 5.0, "video": 30.0, "audio": 10.0}


def media_timeout(modality: str) -> float:
    """Return the seconds that a medium may take to be fetched."""
    name = f"VLLM_{modality.upper()}_FETCH_TIMEOUT"
    value = os.environ.get(name)
    try:
        seconds = float(value) if value else _FETCH_SECONDS[modality]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name}={value!r} is not a number of seconds; set one, as 10, or unset it")
    return seconds


def media_redirects() -> bool:
    return _flag("VLLM_MEDIA_URL_ALLOW_REDIRECTS", True)


def cpu_kernels() -> str | None:
    """Return which kernels compute on a processor, or None: the best."""
    return os.environ.get("VLLM_CPU_KERNELS") or None


def client_api_key() -> str | None:
    """Return the key that a client of ours sends where it is given none."""
    return os.environ.get("VLLM_API_KEY") or os.environ.get("OPENAI_API_KEY") or None


def forbid_multicast() -> None:
    """Keep NCCL from NVLink's multicast, which not every host survives, unless the user says otherwise."""
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


def settings() -> dict[str, str]:
    """Return the variables that are set and that this package or its libraries go by; secrets are hidden."""
    return {
        name: "(hidden)" if any(word in name for word in _SECRET) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(_OURS)
    }


def num_threads() -> int | None:
    """Return OMP_NUM_THREADS, or None when it is unset or no number."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def model_redirects() -> dict[str, str]:
    """Return the name → path table of VLLM_MODEL_REDIRECT_PATH; empty when it is unset."""
    path = os.environ.get("VLLM_MODEL_REDIRECT_PATH")
    if not path:
        return {}
    lines = (line.split(maxsplit=1) for line in Path(path).read_text().splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}
