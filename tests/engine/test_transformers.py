"""The engine against transformers: the same tokens, the same beams, the same log-probabilities."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.checkpoints import generate, reference, spread
from tests.engine.conftest import Load
from tests.models import test_families as families
from vllm import LLM, BeamSearchParams, SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)


def prompts(count: int, longest: int = 60, vocab_size: int = 500) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(3, vocab_size) for _ in range(rng.randint(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_64_random_prompts_give_the_greedy_tokens_of_transformers(
    model_type: str, load: Load, checkpoint: Callable[..., Path]
) -> None:
    model = reference(checkpoint(model_type))
    outputs = load(model_type).generate(prompt_token_ids=prompts(64), sampling_params=GREEDY, use_tqdm=False)
    for prompt, output in zip(prompts(64), outputs, strict=True):
        assert output.outputs[0].token_ids == generate(model, prompt, 20)


ONE_EACH = {model_type: name for name, (model_type, _) in reversed(families.CASES.items())}


@pytest.mark.parametrize(
    "name", [*ONE_EACH.values(), "mistral, window", "gemma3, layer types, scaled rope", "llama, yarn"]
)
def test_every_family_generates_what_transformers_generates(name: str, tmp_path: Path) -> None:
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        config = families.tiny_config(name)
        model = spread(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
        model.save_pretrained(tmp_path)
    asked = prompts(4, 20, 96)
    options = {
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_num_batched_tokens": 7,
        "max_num_seqs": 3,
        "block_size": 8,
    }
    with LLM(tmp_path, **options) as llm:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
        outputs = llm.generate(prompt_token_ids=asked, sampling_params=params, use_tqdm=False)
    for prompt, output in zip(asked, outputs, strict=True):
        assert output.outputs[0].token_ids == generate(model, prompt, 12)


@pytest.mark.parametrize("model_type", ["llama", "opt"])
@pytest.mark.parametrize(
    "options",
    [
        {"beam_width": 4, "length_penalty": 1.0},
        {"beam_width": 3, "length_penalty": 0.5},
        {"beam_width": 2, "length_penalty": 2.0, "ignore_eos": True},
    ],
)
def test_beams_equal_those_of_transformers(
    model_type: str, options: dict[str, float], load: Load, checkpoint: Callable[..., Path]
) -> None:
    model, ends = reference(checkpoint(model_type)), list(range(0, 512, 30))  # so many that beams do finish early
    llm = load(model_type, override_generation_config={"eos_token_id": ends})
    params = BeamSearchParams(max_tokens=12, **options)  # type: ignore[arg-type]
    asked, finished = prompts(6, 20), 0
    for prompt, found in zip(
        asked, llm.beam_search([{"prompt_token_ids": prompt} for prompt in asked], params), strict=True
    ):
        width = params.beam_width
        theirs = generate(
            model, prompt, 12, num_beams=width, num_return_sequences=width, length_penalty=params.length_penalty,
            eos_token_id=None if params.ignore_eos else ends, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        for sequence, tokens, score in zip(
            found.sequences, theirs.sequences.tolist(), theirs.sequences_scores.tolist(), strict=True
        ):
            length = len(sequence.tokens) - len(prompt)
            assert sequence.tokens == tokens[: len(sequence.tokens)]
            assert set(tokens[len(sequence.tokens) :]) <= {1}, "the rest is padding"
            assert sequence.cum_logprob / length**params.length_penalty == pytest.approx(score, abs=1e-4)
            finished += sequence.finish_reason == "stop"
    assert params.ignore_eos or finished > 0


def test_logprobs_equal_those_of_transformers(load: Load, checkpoint: Callable[..., Path]) -> None:
    model = reference(checkpoint("llama"))
    (prompt,) = prompts(1)
    params = SamplingParams(temperature=0, max_tokens=6, logprobs=4, prompt_logprobs=2, ignore_eos=True)
    (output,) = load("llama").generate(prompt_token_ids=prompt, sampling_params=params, use_tqdm=False)
    tokens = prompt + output.outputs[0].token_ids
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
    positions = [*output.prompt_logprobs[1:], *(output.outputs[0].logprobs or [])]
    assert len(positions) == len(tokens) - 1
    for index, entry in enumerate(positions):
        assert entry is not None
        assert next(iter(entry)) == tokens[index + 1]
        for token, logprob in entry.items():
            assert logprob.logprob == pytest.approx(expected[index, token].item(), abs=1e-4)
            assert logprob.rank == 1 + int((expected[index] > expected[index, token]).sum())
    assert output.outputs[0].cumulative_logprob == pytest.approx(
        sum(entry[token].logprob for entry, token in zip(positions[-6:], tokens[-6:], strict=True)), abs=1e-6
    )  # type: ignore[index]
