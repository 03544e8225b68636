"""Compare every model that sees or hears with transformers, and write the table of docs/models.md:

python -m tests.media [--write] [--raise] [name …]

On a GPU: TRITON_INTERPRET=0 python -m tests.media --device cuda
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import transformers

from tests.conftest import _byte_level
from tests.media.cases import GREEDY, LENGTH, cases_of, check, narrow
from tests.media.makers import FAMILIES, save_media_checkpoint
from tests.media.test_models import make
from vllm.models.foreign_names import UNFIT
from vllm.models.media.kinds import PAIRS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- by python -m tests.media --write -->", "<!-- end of media -->"
NOT_HERE = {name: UNFIT[name] for name in ("InstructBlipVideoForConditionalGeneration",)}
"""Names that people may look for, and why they are not here"""
_TOWERS = "transformers' towers | each text and picture, to 1e-4 (`tests/media/test_embedders.py`)"
_TOKENS = "family, transformers' tower | each token, to 1e-4 (`tests/media/test_embedders.py`)"
_ALIKE = "family, transformers' tower | in all ways (`tests/media/test_layouts.py`)"
_OWN = "family, transformers' encoder, own projector | in all ways, with its mathematics written plainly"
ELSEWHERE = {
    **dict.fromkeys(PAIRS, _TOWERS),
    "ColPaliForRetrieval": _TOKENS,
    "ColQwen2ForRetrieval": _TOKENS,
    "DeepseekVLV2ForCausalLM": f"{_OWN} (`tests/media/test_deepseek_vl_v2.py`)",
    "GLM4VForCausalLM": f"{_OWN} (`tests/media/test_glm_4v.py`)",
    "H2OVLChatModel": f"{_OWN} (`tests/media/test_tiles.py`)",
    "InternVLChatModel": _ALIKE,
    "MolmoForCausalLM": f"{_OWN} (`tests/media/test_molmo.py`)",
    "MiniCPMO": f"{_OWN} (`tests/media/test_minicpm_o.py`; 2.6)",
    "MiniCPMV": f"{_OWN} (`tests/media/test_minicpm_v.py`; 2.5, 2.6, 4.0 and 4.5)",
    "NVLM_D": f"{_OWN} (`tests/media/test_tiles.py`)",
    "Phi3VForCausalLM": f"{_OWN} (`tests/media/test_phi3_v.py`)",
    "QwenVLForConditionalGeneration": f"{_OWN} (`tests/media/test_qwen_vl.py`)",
    "UltravoxModel": f"{_OWN} (`tests/media/test_ultravox.py`)",
    "VoxtralForConditionalGeneration": _ALIKE,
}
"""What other tests compare"""


def ways_of(name: str, folder: Path, device: str) -> Iterator[str]:
    """Yield the ways in which a model says what transformers says; the first that fails raises."""
    cases = cases_of(name, folder)
    with make(folder, device=device) as llm:
        for case in cases:
            check(case, llm.generate(case.prompt, GREEDY, use_tqdm=False)[0])
        yield "alone"
        again = llm.generate(cases[-1].prompt, GREEDY, use_tqdm=False)[0]
        check(cases[-1], again)
        assert again.num_cached_tokens
        yield "prefix hit"
        for case, output in zip(cases, llm.generate([c.prompt for c in cases], GREEDY, use_tqdm=False), strict=True):
            check(case, output)
        yield "together"
    with make(folder, device=device, max_num_batched_tokens=narrow(name)) as llm:
        prompts = [case.prompt for case in cases]
        for case, output in zip(cases, llm.generate(prompts, GREEDY, use_tqdm=False), strict=True):
            check(case, output)
    yield "cut"


def rows(names: list[str], place: Path, raises: bool, device: str) -> Iterator[str]:
    tokenizers = place / "tokenizer"
    _byte_level().save_pretrained(tokenizers)
    found: list[tuple[str, str, str, str]] = []
    for name in names or FAMILIES:
        route = "family, transformers' tower"
        architecture, ways, reason = name, [], ""
        try:
            folder = save_media_checkpoint(place / name, tokenizers, name)
            architecture = transformers.AutoConfig.from_pretrained(folder).architectures[0]
            for way in ways_of(name, folder, device):
                ways.append(way)
        except Exception as error:
            if raises:
                raise
            reason = f"; not further: {(str(error).strip() or type(error).__name__).splitlines()[0][:100]}"
        found.append((architecture, name, route, (", ".join(ways) or "no") + reason))
        print(*found[-1], flush=True)
    yield ""
    yield f"The first {LENGTH} greedy tokens and their log-probabilities, with real processors; transformers {transformers.__version__}, "
    yield f"{time.strftime('%Y-%m-%d')}."
    yield ""
    yield "| architecture | example | computed by | agrees |"
    yield "|---|---|---|---|"
    for architecture, name, route, ways_text in sorted(found):
        text = ways_text.replace("|", "/").replace("<", "(").replace(">", ")").replace("`", "'")
        yield f"| `{architecture}` | {name} | {route} | {text} |"
    for architecture, way in sorted(ELSEWHERE.items()):
        yield f"| `{architecture}` | | {way} |"
    for architecture, reason in sorted(NOT_HERE.items()):
        yield f"| `{architecture}` | | not here | {reason} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--raise", dest="raises", action="store_true", help="stop at the first that differs")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where the engine computes")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        table = list(rows(options.names, Path(place), options.raises, options.device))
    if options.write:
        text = PAGE.read_text("utf-8")
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text("\n".join([before + BEGIN, *table, END]) + after, "utf-8")


if __name__ == "__main__":
    main()
