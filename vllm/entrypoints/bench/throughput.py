"""`vllm bench throughput`: how many tokens per second, when all requests are there at once?"""

from __future__ import annotations

import argparse
import time

from vllm.config import EngineArgs
from vllm.entrypoints.bench.report import add_report_options, check_writable, write_json
from vllm.entrypoints.bench.samples import Sample, add_sample_options, make_samples, wanted_samples
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options
from vllm.errors import ConfigError

_OUTPUT_LEN = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sample_options(parser, count=100, input_len=512, output_len=_OUTPUT_LEN)
    parser.add_argument("-n", type=int, default=1, help="outputs of each request (default: %(default)s)")
    add_report_options(parser)
    add_engine_options(parser, without=["seed"])


def run(options: argparse.Namespace) -> None:
    engine = engine_options(options)
    wanted = wanted_samples(options)
    check_writable(options.result_json)
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

    with LLM.from_engine_args(EngineArgs(**engine)) as llm:
        tokenizer = llm.llm_engine.tokenizer
        samples = make_samples(wanted, tokenizer, _OUTPUT_LEN)
        _check_lengths(samples, llm.llm_engine.model_config.max_model_len)
        params = [
            SamplingParams(n=options.n, temperature=1.0, ignore_eos=True, max_tokens=sample.max_tokens)
            for sample in samples
        ]
        prompts = [sample.prompt for sample in samples]
        llm.generate("A", SamplingParams(max_tokens=2), use_tqdm=False)  # what is only done once is done now
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=not options.disable_tqdm)
        elapsed = time.perf_counter() - start
    num_prompt = sum(len(output.prompt_token_ids or []) for output in outputs)
    num_output = sum(len(one.token_ids) for output in outputs for one in output.outputs)
    print(
        f"{len(outputs)} requests in {elapsed:.2f} s: {len(outputs) / elapsed:,.2f} requests/s, "
        f"{(num_prompt + num_output) / elapsed:,.1f} tokens/s in all, {num_output / elapsed:,.1f} output tokens/s "
        f"({num_prompt:,} tokens in, {num_output:,} out)"
    )
    write_json(
        options.result_json,
        {
            "elapsed_time": elapsed,
            "num_requests": len(outputs),
            "total_input_tokens": num_prompt,
            "total_output_tokens": num_output,
            "total_num_tokens": num_prompt + num_output,
            "requests_per_second": len(outputs) / elapsed,
            "tokens_per_second": (num_prompt + num_output) / elapsed,
            "output_tokens_per_second": num_output / elapsed,
        },
    )


def _check_lengths(samples: list[Sample], max_model_len: int) -> None:
    """Raise ConfigError, before anything runs, for a request that is longer than the model's context."""
    longest = max(sample.num_prompt + (sample.max_tokens or 0) for sample in samples)
    if longest > max_model_len:
        raise ConfigError(
            f"a request has {longest} tokens of prompt and answer, and the model's context is {max_model_len}; "
            "lower --input-len or --output-len"
        )
