"""Our tokenizers against transformers' own, over tokenizer files of many origins."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from vllm.errors import ModelError, RequestError
from vllm.inputs.tokenizer import FastTokenizer, Tokenizer, hf_tokenizer, load_tokenizer
from vllm.inputs.tokenizer_files import TokenizerFiles, read_backend

TEXTS = [
    "Hello, my name is",
    " leading and  double  spaces ",
    "don't\n\nstop\t1234",
    "naïve 😀 潮水 \u200d",
    "<s>[INST] hi [/INST]</s> more <|end|> end",
    "",
]


@pytest.fixture(scope="module")
def loaded(tokenizer_folders: dict[str, Path]) -> dict[str, Tokenizer]:
    return {kind: load_tokenizer(folder) for kind, folder in tokenizer_folders.items()}


def assert_same(ours: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        for special in (True, False):
            expected = theirs(text, add_special_tokens=special).input_ids
            assert ours.encode(text, special) == expected, (text, special)
            assert ours.decode(expected, False) == theirs.decode(expected, skip_special_tokens=False)
            assert ours.decode(expected, True) == theirs.decode(expected, skip_special_tokens=True)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "wordpiece"])
def test_trained_tokenizers_agree_with_transformers(
    kind: str, tokenizer_folders: dict[str, Path], loaded: dict[str, Tokenizer]
) -> None:
    assert_same(loaded[kind], AutoTokenizer.from_pretrained(tokenizer_folders[kind]))


def _bpe_pieces(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


CLASSES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "llama": (LlamaTokenizer, "sentencepiece", {}),
    "llama legacy": (LlamaTokenizer, "sentencepiece", {"legacy": True}),
    "llama without prefix space": (LlamaTokenizer, "sentencepiece", {"add_prefix_space": False}),
    "llama with bos": (LlamaTokenizer, "sentencepiece", {"add_bos_token": True}),
    "llama with bos and eos": (LlamaTokenizer, "sentencepiece", {"add_bos_token": True, "add_eos_token": True}),
    "gemma": (GemmaTokenizer, "sentencepiece", {"add_bos_token": True}),
    "gpt2": (GPT2Tokenizer, "byte level", {}),
    "opt": (GPT2Tokenizer, "byte level", {"add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>"}),
    "gpt2 with prefix space": (GPT2Tokenizer, "byte level", {"add_prefix_space": True}),
    "qwen2": (Qwen2Tokenizer, "byte level", {}),
}
WITHOUT_TRANSFORMERS = {
    "llama", "llama with bos", "llama with bos and eos", "gemma", "gpt2", "opt", "qwen2",
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}])
def test_classes_agree_with_transformers_whatever_the_config_adds(
    name: str, flags: dict[str, bool], tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    cls, kind, options = CLASSES[name]
    vocab, merges = _bpe_pieces(tokenizer_folders[kind])
    cls(vocab=vocab, merges=merges, **options).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags))
    assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    assert (read_backend(TokenizerFiles.read(tmp_path)) is not None) == (name in WITHOUT_TRANSFORMERS)


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "qwen2"])
def test_special_tokens_that_a_class_implies_are_known(
    name: str, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    cls, kind, options = CLASSES[name]
    vocab, merges = _bpe_pieces(tokenizer_folders[kind])
    cls(vocab=vocab, merges=merges, **options).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls.__name__ + "Fast"}))
    assert read_backend(TokenizerFiles.read(tmp_path)) is not None
    assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


ORIGINS = [
    (declared, model_type, kind)
    for declared in ("LlamaTokenizerFast", "GPT2Tokenizer", "PreTrainedTokenizerFast", None)
    for model_type in ("llama", "qwen2", "opt", "gemma", None)
    for kind in ("byte level", "sentencepiece")
    if (declared or model_type)  # transformers needs one of the two
    and (model_type, kind) != ("gemma", "byte level")  # its class asks for an unknown token that is not there
]


@pytest.mark.parametrize(("declared", "model_type", "kind"), ORIGINS)
def test_a_class_that_disagrees_with_the_file_is_settled_as_transformers_does(
    declared: str | None, model_type: str | None, kind: str, tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folders[kind] / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": declared} if declared else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path))


def test_opt_without_tokenizer_json_gets_its_begin_token(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    vocab, merges = _bpe_pieces(tokenizer_folders["byte level"])
    (tmp_path / "vocab.json").write_text(json.dumps(vocab | {"</s>": len(vocab)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "opt"}))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "GPT2Tokenizer", "bos_token": "</s>", "eos_token": "</s>", "add_bos_token": True}
        )
    )
    ours = load_tokenizer(tmp_path)
    assert ours.encode("Hello")[0] == ours.bos_token_id == len(vocab)
    assert ours.encode("Hello", add_special_tokens=False)[0] != ours.bos_token_id
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))


def test_added_tokens_of_the_config_are_added(tokenizer_folders: dict[str, Path], tmp_path: Path) -> None:
    source = tokenizer_folders["byte level"]
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    size = load_tokenizer(source).vocab_size
    added = {str(size): {"content": "<|tool|>", "special": True}, str(size + 1): {"content": "<|plain|>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"added_tokens_decoder": added, "additional_special_tokens": ["<|extra|>"]})
    )
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert_same(ours, theirs)
    text = "a<|tool|>b<|plain|>c<|pad|>d<|extra|>"
    assert ours.encode(text) == theirs(text).input_ids
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text).input_ids, skip_special_tokens=True)


def test_truncation_and_padding_in_the_file_are_switched_off(
    tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(tokenizer_folders["byte level"])
    theirs.backend_tokenizer.enable_truncation(max_length=5)
    theirs.backend_tokenizer.enable_padding(length=8)
    theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    text = "the tide " * 2000
    assert ours.decode(ours.encode(text)) == text
    assert len(ours.encode_batch(["a", text])[0]) == 1


def test_a_special_token_of_the_template_becomes_one_id(loaded: dict[str, Tokenizer]) -> None:
    ids = loaded["byte level"].encode("<|im_start|>user", add_special_tokens=False)
    assert ids[0] in loaded["byte level"].special_ids


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "wordpiece"])
def test_the_texts_of_single_tokens_join_to_the_whole_text(kind: str, loaded: dict[str, Tokenizer]) -> None:
    tokenizer = loaded[kind]
    text = "the tide came in twice a day, nobody thought about it"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(tokenizer.token_text(token) for token in ids).removeprefix(" ") == text
    assert any(tokenizer.token_text(token).startswith(" ") for token in ids)


def test_ids_outside_the_vocabulary_have_no_text(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        assert tokenizer.token_text(10**6) == ""
        assert tokenizer.decode([10**6]) == ""


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["byte level", "sentencepiece"]))
def test_bytes_of_tokens_join_to_the_text(data: st.DataObject, kind: str, loaded: dict[str, Tokenizer]) -> None:
    text = data.draw(st.text(max_size=40))
    tokenizer = loaded[kind]
    ids = [token for token in tokenizer.encode(text, add_special_tokens=False) if token not in tokenizer.special_ids]
    joined = b"".join(tokenizer.token_bytes(token) for token in ids).decode("utf-8", "replace")
    whole = tokenizer.decode(ids)
    assert joined in (whole, " " + whole)


def test_an_unpaired_surrogate_is_refused_with_its_place(loaded: dict[str, Tokenizer]) -> None:
    for tokenizer in loaded.values():
        with pytest.raises(RequestError, match=r"'\\ud800' at character 3"):
            tokenizer.encode("abc\ud800d")


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer could be loaded .*tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ModelError, match=r"tokenizer\.json: can't be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"tokenizer_config\.json: holds a list"):
        load_tokenizer(tmp_path)


def test_users_get_a_transformers_tokenizer(tokenizer_folders: dict[str, Path], loaded: dict[str, Tokenizer]) -> None:
    theirs = hf_tokenizer(tokenizer_folders["sentencepiece"])
    assert theirs("Hello").input_ids == loaded["sentencepiece"].encode("Hello")
    assert hasattr(theirs, "apply_chat_template")


def test_the_usual_path_needs_neither_transformers_nor_torch(tokenizer_folders: dict[str, Path]) -> None:
    code = (
        "import sys; from vllm.inputs.tokenizer import load_tokenizer\n"
        f"tokenizer = load_tokenizer({str(tokenizer_folders['byte level'])!r})\n"
        "assert tokenizer.decode(tokenizer.encode('a tide')) == 'a tide'\n"
        "print(sorted({'transformers', 'torch'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_slow_tokenizer_serves_as_well(tmp_path: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert not isinstance(ours, FastTokenizer)
    assert_same(ours, AutoTokenizer.from_pretrained(tmp_path))
    assert ours.token_text(ours.encode("b", add_special_tokens=False)[0]) == "b"
    with pytest.raises(RequestError, match="surrogate"):
        ours.encode("\ud800")


@pytest.mark.parametrize(
    "entry", [{"added_tokens_decoder": [1]}, {"added_tokens_decoder": {"x": {}}}, {"extra_special_tokens": 5}]
)
def test_entries_of_another_type_are_a_damaged_file(
    entry: dict[str, Any], tokenizer_folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_folders["byte level"], tmp_path / "copy")
    file = tmp_path / "copy" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    with pytest.raises(ModelError, match="holds something unexpected .* fetch the files again"):
        load_tokenizer(tmp_path / "copy")
