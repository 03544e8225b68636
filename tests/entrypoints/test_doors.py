"""Names that clients import where vllm has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm import LLM
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.errors import ConfigError, ModelError
from vllm.lora.request import LoRARequest
from vllm.transformers_utils.tokenizer import get_tokenizer


def test_a_tokenizer_is_transformers_own(checkpoint: Callable[..., Path]) -> None:
    tokenizer = get_tokenizer(str(checkpoint("llama")), tokenizer_mode="auto", trust_remote_code=False, revision=None)
    assert tokenizer.decode(tokenizer("The tide").input_ids) == "The tide"
    assert get_tokenizer(checkpoint("llama"), eos_token="<|im_end|>").eos_token == "<|im_end|>"
    with pytest.raises(ModelError, match="no such directory"):
        get_tokenizer("/no/such/folder")


def test_an_adapter_is_refused() -> None:
    with LLM() as llm, pytest.raises(ConfigError, match="lora_request"):
        llm.generate("A", lora_request=LoRARequest("name", 1, "/path"))  # type: ignore[arg-type]


def test_cleaning_up_is_no_harm() -> None:
    with LLM() as llm:
        cleanup_dist_env_and_memory()
        assert llm.generate("A", use_tqdm=False)[0].outputs[0].token_ids
