"""Models that see or hear whose configuration is code of their own repository, in the words of classes that transformers has.

What comes out is a text_config, a vision_config or audio_config, the tokens that media have, and what else a tower is made of,
held by the configuration of llava, which keeps whatever it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm.names import named

_KINDS: Mapping[str, str] = {
    "chatglm": "glm_4v:glm_4v",
    "NVLM_D": "internvl:nvlm_d",
    "deepseek_vl_v2": "deepseek_vl_v2:deepseek_vl_v2",
    "h2ovl_chat": "internvl:internvl_chat",
    "internvl_chat": "internvl:internvl_chat",
    "minicpmo": "minicpm_v:minicpm_o",
    "minicpmv": "minicpm_v:minicpm_v",
    "molmo": "molmo:molmo",
    "phi3_v": "phi3_v:phi3_v",
    "qwen": "qwen_vl:qwen_vl",
    "ultravox": "ultravox:ultravox",
}
"""Model type → what reads its config.json, of the folder that it lies in, as "module:function" """


def as_published(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return config.json's content in the words of transformers; itself where it is in them.  Raises ModelError."""
    read = _KINDS.get(str(content.get("model_type")))
    return content if read is None else named(f"{__name__}.{read}")(content, folder)  # type: ignore[no-any-return]
