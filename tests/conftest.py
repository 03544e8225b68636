"""Tokenizers and tiny models that more than one room's tests need, made once per session."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Two threads on tiny tensors wait for each other more than they compute; tests that mean two set them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels for GPUs run on the CPU.  It is read when triton is imported, by whomever.
os.environ.setdefault("TRITON_INTERPRET", "1")

# In CI the same examples run every time: a rare find belongs into a bug report, not into somebody else's change.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

CORPUS = """
The tide came in twice a day and nobody in the village thought about it. Fishermen's boats rose and fell with it, the
clock on the church didn't care, and children learned to count the hours between two waters before they could read.
Reading came later: first the names on the boats, then the prices at the market (3 for 10, 12 for 35), then letters.
“Naïve?” asked the teacher. “Perhaps; but they don't forget.” Der Müller mahlt früh, le pêcheur rentre tôt.
Числа и слова: раз, два, три. 潮水每天来两次。 def tide(hour): return hour % 12 < 6  # high?
""".strip().split("\n")


@pytest.fixture(scope="session")
def tokenizer_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind of tokenizer → a folder with tokenizer.json and tokenizer_config.json."""
    makers = {"byte level": _byte_level, "sentencepiece": _sentencepiece, "wordpiece": _wordpiece}
    folders = {}
    for kind, make in makers.items():
        folders[kind] = tmp_path_factory.mktemp(kind.replace(" ", "-"))
        make().save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]) -> Callable[..., Path]:
    """`checkpoint("llama", tie_word_embeddings=True)` → a model folder, written once per session."""
    made: dict[str, Path] = {}

    def make(model_type: str, **changes: Any) -> Path:
        from tests.checkpoints import save_checkpoint

        key = repr((model_type, sorted(changes.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp(model_type)
            made[key] = save_checkpoint(folder, tokenizer_folders["byte level"], model_type, **changes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def media_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]
) -> Callable[[str], Path]:
    """`media_checkpoint("llava")` → a model folder."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        from tests.media.makers import save_media_checkpoint

        if name not in made:
            made[name] = save_media_checkpoint(tmp_path_factory.mktemp(name), tokenizer_folders["byte level"], name)
        return made[name]

    return make


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed, and nothing that is installed in it stays."""
    root = Path(__file__).parents[1]
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    (packages,) = (place / "lib").glob("python*/site-packages")
    paths = [root, *site.getsitepackages(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    (packages / "ours.pth").write_text("".join(f"{path}\n" for path in paths))
    for name, module in (("vllm", "vllm.entrypoints.cli"), ("pip", "pip")):
        command = place / "bin" / name
        command.write_text(f'#!/bin/sh\nexec python -m {module} "$@"\n')
        command.chmod(0o755)
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "PATH": path, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _byte_level() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


def _sentencepiece() -> Any:
    """BPE over ▁words with byte fallback, and a begin token, as Llama has it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, limit_alphabet=60, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    whole = Tokenizer.from_str(_with_plain_bytes(backend.to_str()))
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _with_plain_bytes(tokenizer_json: str) -> str:
    """Training made the byte tokens special; in checkpoints they are ordinary entries of the vocabulary."""
    import json

    state = json.loads(tokenizer_json)
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[SEP]")
