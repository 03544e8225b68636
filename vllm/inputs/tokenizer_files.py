"""What the tokenizer files of a checkpoint say, and whether they say everything.

`tokenizer.json` is a whole tokenizer.  transformers takes it as it is for the classes that have no code of their own;
the others build normalizer, pre-tokenizer and decoder anew in code and take only the vocabulary from the file, so that
for them the file alone is right only where both agree.  The post-processor (which special tokens are added) is always
the file's: `add_bos_token` and `add_eos_token` of tokenizer_config.json have no say beside a tokenizer.json.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm.errors import ModelError
from vllm.inputs.ranked_vocabulary import BYTE_OF, ranked_backend
from vllm.loader.published.tokens import WHOLE

if TYPE_CHECKING:
    import tokenizers

_AS_FILE = ("TokenizersBackend", "PreTrainedTokenizer")  # after the "Fast" is cut off

# model types whose declared class is overruled; None: by a class that is not in the table below
_FORCED_CLASS: dict[str, str | None] = {
    "qwen2": "Qwen2Tokenizer",
    "qwen3_5": None,
    "qwen3_5_moe": None,
    "qwen3_5_moe_text": None,
    "qwen4_exp": None,
    "siglip2": None,
    "hyperclovax_vision_v2": None,
}


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A class that builds its pieces in code: what comes out with default settings."""

    fingerprint: str
    special_tokens: dict[str, str]
    prefix_space: bool = False


_END_OF_TEXT = "<|endoftext|>"
_BUILT_IN = {
    "LlamaTokenizer": _BuiltIn(
        "ae4dff12252eb8e8", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, prefix_space=True
    ),
    "GemmaTokenizer": _BuiltIn(
        "4f8110cdef0339d1",
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "GPT2Tokenizer": _BuiltIn(
        "5cf8300a205ff616", {"bos_token": _END_OF_TEXT, "eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT}
    ),
    "Qwen2Tokenizer": _BuiltIn(
        "15d6dbea8c9f30b9", {"eos_token": _END_OF_TEXT, "unk_token": _END_OF_TEXT, "pad_token": _END_OF_TEXT}
    ),
}


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The small files beside tokenizer.json, read and merged."""

    folder: Path
    config: dict[str, Any]
    """tokenizer_config.json, over special_tokens_map.json."""
    model_type: str | None
    special_tokens: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        config = read_json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in config:
            config = config | read_json(folder / "special_tokens_map.json")
        model_type = read_json(folder / "config.json").get("model_type")
        built_in = _BUILT_IN.get(_declared_class(config, model_type) or "")
        defaults = built_in.special_tokens if built_in else {}
        return cls(folder, config, model_type, _special_tokens(defaults | config))

    @property
    def tokenizer_json(self) -> Path:
        return self.folder / "tokenizer.json"

    @property
    def truncation_side(self) -> Literal["left", "right"]:
        return "left" if self.config.get("truncation_side") == "left" else "right"


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not valid JSON ({error}); download the file again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: holds a {type(content).__name__}, not an object; download the file again")
    return content


def read_backend(files: TokenizerFiles) -> tokenizers.Tokenizer | None:
    """Return the tokenizer that the files describe on their own; None where only transformers can build it."""
    if not files.tokenizer_json.is_file():
        return ranked_backend(files.folder, files.config, read_json(files.folder / "config.json"))
    words = WHOLE.get(files.model_type or "")
    if "auto_map" in files.config and words is None:
        return None
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(files.tokenizer_json))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{files.tokenizer_json}: can't be read ({error}); download the file again") from None
    if words is None and not _file_is_whole(files, backend):
        return None
    _add_tokens(backend, files)
    backend.add_special_tokens(list(words or ()))
    backend.encode_special_tokens = bool(files.config.get("split_special_tokens", False))
    return backend


def _file_is_whole(files: TokenizerFiles, backend: tokenizers.Tokenizer) -> bool:
    declared = _declared_class(files.config, files.model_type)
    if declared in _AS_FILE:
        return True
    if declared is None:  # no class is named: with a model type beside it, the class depends on that
        return files.model_type is None
    built_in = _BUILT_IN.get(declared)
    if built_in is None or files.config.get("legacy"):
        return False
    prefix_space = files.config.get("add_prefix_space", built_in.prefix_space)
    return prefix_space in (built_in.prefix_space, None) and built_in.fingerprint == _fingerprint(backend)


def _declared_class(config: dict[str, Any], model_type: str | None) -> str | None:
    """The class that transformers would take, without its "Fast"; None where only transformers knows."""
    if model_type in _FORCED_CLASS:
        return _FORCED_CLASS[model_type]
    name = config.get("tokenizer_class")
    return name.removesuffix("Fast") if isinstance(name, str) else None


def _fingerprint(backend: tokenizers.Tokenizer) -> str:
    """Name the pieces around the vocabulary by a digest of their settings."""
    pieces = [_state(backend.normalizer), _state(backend.pre_tokenizer), _state(backend.decoder)]
    if pieces[2].get("type") == "ByteLevel":
        pieces[2] = {"type": "ByteLevel"}  # its settings matter to encoding only
    return hashlib.sha256(json.dumps(pieces, sort_keys=True).encode()).hexdigest()[:16]


def _state(piece: Any) -> dict[str, Any]:
    return {} if piece is None else json.loads(piece.__getstate__())


def _add_tokens(backend: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """Add the tokens that tokenizer_config.json knows and tokenizer.json lacks, in the order of their ids."""
    from tokenizers import AddedToken

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    listed = sorted(files.config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
    entries = [entry for _, entry in listed if entry["content"] not in known]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    backend.add_tokens(
        [AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry}) for entry in entries]
    )
    known.update(entry["content"] for entry in entries)
    named = [*files.special_tokens.values(), *_extra_special(files.config)]
    backend.add_special_tokens([AddedToken(text, special=True) for text in dict.fromkeys(named) if text not in known])


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    extra = config.get("extra_special_tokens")
    entries = config | extra if isinstance(extra, dict) else config
    named = {name: _content(value) for name, value in entries.items() if name.endswith("_token")}
    return {name: text for name, text in named.items() if text is not None}


def _extra_special(config: dict[str, Any]) -> list[str]:
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    texts = [_content(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    return [text for text in texts if text is not None]


def _content(token: Any) -> str | None:
    """A special token stands in the files as a text or as an object with its flags."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


ByteRule = Literal["byte level", "byte fallback", "byte fallback, first space stripped"]
"""How a decoder turns a token into bytes.  "byte level": each character of the token stands for a byte.
"byte fallback": "▁" stands for a space, and tokens like <0xE2> for a byte."""


def byte_rule(backend: tokenizers.Tokenizer) -> ByteRule | None:
    """Return the rule of a tokenizer's decoder; None for a decoder that looks at a token's neighbours."""
    state = _state(backend.decoder)
    steps = state.get("decoders", [state])
    if steps == [{"type": "Fuse"}] or not steps:
        return None
    if [step.get("type") for step in steps] == ["ByteLevel"]:
        return "byte level"
    sentencepiece = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if steps == sentencepiece:
        return "byte fallback"
    if steps == [*sentencepiece, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
        return "byte fallback, first space stripped"
    return None


def token_bytes(token: str | None, rule: ByteRule) -> bytes:
    """Return the bytes that a token, as its vocabulary spells it, stands for; none for an id without a token."""
    if token is None:
        return b""
    if rule == "byte level":
        values = [BYTE_OF.get(character) for character in token]
        whole = [value for value in values if value is not None]
        return bytes(whole) if len(whole) == len(values) else token.encode()
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("▁", " ").encode()
