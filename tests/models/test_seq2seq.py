"""Encoders with decoders say what they say in transformers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from tests.checkpoints import spread
from vllm import LLM, SamplingParams
from vllm.errors import RequestError
from vllm.sampling_params import BeamSearchParams

LENGTH = 6
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, ignore_eos=True, logprobs=1)
SIZES: dict[str, Any] = {"vocab_size": 512, "d_model": 48, "pad_token_id": 1, "eos_token_id": 0, "bos_token_id": 0}
LAYERS = dict.fromkeys(("encoder_layers", "decoder_layers"), 2)
LAYERS |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
LAYERS |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64)
T5 = {"num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_kv": 12, "d_ff": 64, "n_positions": 128}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bart": ("BartForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128, "decoder_start_token_id": 2}),
    "mbart": ("MBartForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128, "decoder_start_token_id": 2}),
    "marian": ("MarianMTModel", {**LAYERS, "max_position_embeddings": 128, "decoder_start_token_id": 1}),
    "pegasus": ("PegasusForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128}),
    "blenderbot": ("BlenderbotForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128}),
    "plbart": ("PLBartForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128}),
    "m2m": ("M2M100ForConditionalGeneration", {**LAYERS, "max_position_embeddings": 128}),
    "languages": (
        "MarianMTModel",
        {
            **LAYERS,
            "max_position_embeddings": 128,
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 512,
        },
    ),
    "t5": ("T5ForConditionalGeneration", {**T5, "decoder_start_token_id": 1}),
    "flan": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "umt5": ("UMT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu"}),
}
TEXTS = ["The tide came in twice a day", "nobody", "children learned to count the hours between two waters"]


@pytest.fixture(scope="module")
def model_of(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folders: dict[str, Path]
) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            architecture, changes = KINDS[name]
            folder = tmp_path_factory.mktemp(name)
            kind = getattr(transformers, architecture)
            fields = {"decoder_start_token_id": 3, **SIZES, **changes}
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                model = spread(kind(kind.config_class(**fields, architectures=[architecture])))
                model.generation_config.forced_eos_token_id = None
                model.save_pretrained(folder)
            _ends_texts(tokenizer_folders["byte level"]).save_pretrained(folder)
            made[name] = folder, kind.from_pretrained(folder, attn_implementation="eager").eval()
        return made[name]

    return make


def _ends_texts(folder: Path) -> Any:
    """Return a tokenizer that writes an end token behind a text, as those of bart and t5 do."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


def make(folder: Path, **options: Any) -> LLM:
    return LLM(str(folder), dtype="float32", max_num_seqs=4, **options)


@torch.inference_mode()
def expected(model: Any, source: list[int], begin: list[int] | None = None, **options: Any) -> Any:
    ids = torch.tensor([source])
    if begin is not None:
        options["decoder_input_ids"] = torch.tensor([begin])
    result = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=None,
        forced_eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
        **{"num_beams": 1, **options},
    )
    logprobs = torch.stack([logits[0].log_softmax(-1).max() for logits in result.logits])
    return result.sequences[0].tolist(), logprobs


@pytest.mark.parametrize(
    ("name", "impl"), [*((name, "auto") for name in KINDS), ("bart", "transformers"), ("t5", "transformers")]
)
def test_a_text_is_read_and_answered(name: str, impl: str, model_of: Callable[[str], tuple[Path, Any]]) -> None:
    folder, model = model_of(name)
    with make(folder, max_num_batched_tokens=8, model_impl=impl) as llm:
        assert llm.llm_engine.core.executor.runner.hidden.model.is_complete == (impl == "transformers")
        alone = [llm.generate(text, GREEDY, use_tqdm=False)[0] for text in TEXTS]
        together = llm.generate(TEXTS, GREEDY, use_tqdm=False)
        for one, other in zip(alone, together, strict=True):
            assert one.encoder_prompt_token_ids and one.encoder_prompt in TEXTS
            tokens, logprobs = expected(model, one.encoder_prompt_token_ids)
            assert [*one.prompt_token_ids, *one.outputs[0].token_ids] == tokens
            assert one.outputs[0].token_ids == other.outputs[0].token_ids
            found = torch.tensor([next(iter(step.values())).logprob for step in one.outputs[0].logprobs])
            torch.testing.assert_close(found, logprobs, atol=2e-4, rtol=0.0)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_what_is_kept_of_source_and_tokens_is_known_before_they_come(
    name: str, model_of: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = model_of(name)
    with make(folder, max_model_len=100, model_impl="transformers") as llm:
        entry = llm.llm_engine.core.executor.runner.hidden.model.entry
        source = getattr(model.config, "max_position_embeddings", 100)
        keys_and_values = 2 * 2 * 48 * 4  # of two layers
        assert entry.sequence_bytes(100) == 100 * 8 + (100 + source) * keys_and_values + source * 48 * 4
        assert llm.llm_engine.core.executor.plan.num_seqs == 4


def test_bits_depend_neither_on_company_nor_on_how_tokens_are_cut(
    model_of: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, together, in small steps, on a prefix hit and after a preemption; with room for few sources, too."""
    folder, _ = model_of("bart")
    texts = [text for text in TEXTS for _ in range(2)]
    prompts: list[Any] = [
        {"encoder_prompt": text, "decoder_prompt": [2, *range(5, 5 + 9 * index)]} for index, text in enumerate(texts)
    ]

    def run(llm: LLM, prompts: list[Any], preempt: int = -1) -> list[Any]:
        engine, found, step = llm.llm_engine, {}, 0
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), prompt, GREEDY)
        while engine.has_work:
            if step == preempt:
                engine.scheduler._preempt(engine.scheduler.running[-1])
            found |= {output.request_id: output.outputs[0] for output in engine.step()}
            engine.scheduler.check()
            step += 1
        return [(found[str(index)].token_ids, found[str(index)].logprobs) for index in range(len(prompts))]

    with make(folder, enable_prefix_caching=True) as llm:
        alone = [run(llm, [prompt])[0] for prompt in prompts]
        assert run(llm, prompts) == alone
        assert llm.llm_engine.scheduler.stats.prefix_hits > 0
    with make(folder, max_num_batched_tokens=8) as llm:
        assert run(llm, prompts, preempt=3) == alone
    with make(folder, max_num_batched_tokens=8, num_gpu_blocks_override=9) as llm:  # one source of 128 tokens at most
        scheduler = llm.llm_engine.scheduler
        assert scheduler.config.source_tokens == 128
        encoded = []
        take = scheduler._encodings.take
        monkeypatch.setattr(scheduler._encodings, "take", lambda: (encoded.append(1), take())[1])
        assert run(llm, prompts) == alone


def test_a_source_is_encoded_once_for_all_who_attend_to_it(
    model_of: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = model_of("bart")
    with make(folder) as llm:
        runner = llm.llm_engine.core.executor.runner
        lengths = []
        encode = runner.media._encode
        monkeypatch.setattr(
            runner.media, "_encode", lambda media: (lengths.extend(one.length for one in media), encode(media))[1]
        )
        several = SamplingParams(temperature=1.0, n=3, max_tokens=4, seed=1, ignore_eos=True)
        outputs = llm.generate([TEXTS[0], TEXTS[0], TEXTS[1]], several, use_tqdm=False)
        assert len({tuple(one.token_ids) for one in outputs[0].outputs}) == 3
        beams = llm.beam_search([{"prompt": TEXTS[0]}], BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True))
        assert lengths == [len(outputs[0].encoder_prompt_token_ids), len(outputs[2].encoder_prompt_token_ids)]
        source = torch.tensor([outputs[0].encoder_prompt_token_ids])
        for beam in beams[0].sequences:  # as likely as transformers says
            ids = torch.tensor([beam.tokens])
            with torch.inference_mode():
                scores = model(input_ids=source, decoder_input_ids=ids).logits[0].log_softmax(-1)
            likely = sum(
                float(scores[place, ids[0, place + 1]]) for place in range(ids.shape[1] - 4 - 1, ids.shape[1] - 1)
            )
            assert abs(likely - beam.cum_logprob) < 1e-3


def test_a_head_of_its_own_is_used_where_a_checkpoint_has_one(
    tmp_path: Path, model_of: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = model_of("flan")
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = torch.roll(weights["shared.weight"], 7, 0)
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with make(folder) as tied, make(tmp_path) as own:
        first = tied.generate(TEXTS[0], GREEDY, use_tqdm=False)[0].outputs[0].token_ids[0]
        assert own.generate(TEXTS[0], GREEDY, use_tqdm=False)[0].outputs[0].token_ids[0] == (first + 7) % 512


def test_the_decoder_may_begin_with_a_text(model_of: Callable[[str], tuple[Path, Any]]) -> None:
    folder, model = model_of("bart")
    with make(folder, max_num_batched_tokens=8) as llm:
        pair = {"encoder_prompt": TEXTS[0], "decoder_prompt": "Fishermen's boats rose and fell"}
        (output,) = llm.generate(pair, GREEDY, use_tqdm=False)
        assert output.prompt_token_ids[0] == model.config.decoder_start_token_id
        tokens, _ = expected(model, output.encoder_prompt_token_ids, output.prompt_token_ids)
        assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == tokens
        ids = {"prompt_token_ids": output.encoder_prompt_token_ids}
        (again,) = llm.generate(
            {"encoder_prompt": ids, "decoder_prompt": output.prompt_token_ids}, GREEDY, use_tqdm=False
        )
        assert again.outputs[0].token_ids == output.outputs[0].token_ids
        several = SamplingParams(temperature=1.0, n=3, max_tokens=4, seed=1, ignore_eos=True)
        assert len(llm.generate(pair, several, use_tqdm=False)[0].outputs) == 3
        beams = llm.beam_search([pair], BeamSearchParams(beam_width=2, max_tokens=4, ignore_eos=True))
        assert len(beams[0].sequences) == 2
        with pytest.raises(RequestError, match="its encoder reads at most 128"):
            llm.generate("long " * 200, GREEDY)
        with pytest.raises(RequestError, match="no 'encoder_prompt'"):
            llm.generate({"decoder_prompt": "a"}, GREEDY)
    with LLM("", max_model_len=64) as llm, pytest.raises(RequestError, match="the model has no encoder"):
        llm.generate(pair, GREEDY)


@pytest.mark.parametrize("begin", [None, [7, 2, 9], [2, 7]])
def test_the_decoder_begins_with_its_start_alone(
    begin: list[int] | None, model_of: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, model = model_of("bart")
    with make(folder) as llm:
        pair: Any = {"encoder_prompt": TEXTS[0], "decoder_prompt": begin}
        (output,) = llm.generate(pair, GREEDY, use_tqdm=False)
        assert output.encoder_prompt_token_ids[-1] == model.config.eos_token_id
        tokens, _ = expected(model, output.encoder_prompt_token_ids, begin)
        assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == tokens


def test_a_sound_is_heard_and_written_down(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> None:
    config = transformers.WhisperConfig(
        **{**SIZES, **LAYERS, "num_mel_bins": 16, "max_source_positions": 100, "max_target_positions": 64},
        decoder_start_token_id=3,
        architectures=["WhisperForConditionalGeneration"],
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = spread(transformers.WhisperForConditionalGeneration(config))
        model.save_pretrained(tmp_path)
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    extractor.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(tokenizer_folders["byte level"]).save_pretrained(tmp_path)
    sound = np.sin(np.arange(24000) / 9).astype(np.float32)
    features = extractor(sound, sampling_rate=16000, return_tensors="pt").input_features
    ids = torch.tensor([[3, 7, 9]])
    with torch.inference_mode():
        for _ in range(LENGTH):
            logits = model(input_features=features, decoder_input_ids=ids).logits[0, -1]
            ids = torch.cat((ids, logits.argmax().view(1, 1)), dim=1)
    with make(tmp_path) as llm:
        audio = {"audio": (sound, 16000)}
        prompts: list[Any] = [
            {"prompt_token_ids": [3, 7, 9], "multi_modal_data": audio},
            {"encoder_prompt": {"prompt": "", "multi_modal_data": audio}, "decoder_prompt": [7, 9]},
        ]
        for output in llm.generate(prompts, GREEDY, use_tqdm=False):
            assert [*output.prompt_token_ids, *output.outputs[0].token_ids] == ids[0].tolist()
        with pytest.raises(RequestError, match="0 sounds for the model's encoder"):
            llm.generate("a", GREEDY)
