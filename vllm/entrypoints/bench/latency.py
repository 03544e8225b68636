"""`vllm bench latency`: how long does one batch take, from its prompts to its last token?"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from vllm.config import EngineArgs
from vllm.entrypoints.bench.measures import percentile
from vllm.entrypoints.bench.report import add_report_options, check_writable, write_json
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options
from vllm.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    batch = parser.add_argument_group("batch")
    batch.add_argument("--input-len", type=int, default=32, help="tokens of each prompt (default: %(default)s)")
    batch.add_argument("--output-len", type=int, default=128, help="tokens of each answer (default: %(default)s)")
    batch.add_argument("--batch-size", type=int, default=8, help="prompts in the batch (default: %(default)s)")
    batch.add_argument(
        "--num-iters-warmup", type=int, default=3, help="batches before the clock runs (default: %(default)s)"
    )
    batch.add_argument("--num-iters", type=int, default=10, help="batches that are measured (default: %(default)s)")
    add_report_options(parser)
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    for name, least in (
        ("input_len", 1),
        ("output_len", 1),
        ("batch_size", 1),
        ("num_iters", 1),
        ("num_iters_warmup", 0),
    ):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")
    engine = engine_options(options)
    check_writable(options.result_json)
    from tqdm import tqdm

    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

    with LLM.from_engine_args(EngineArgs(**engine)) as llm:
        model = llm.llm_engine.model_config
        if options.input_len + options.output_len > model.max_model_len:
            raise ConfigError(
                f"--input-len {options.input_len} and --output-len {options.output_len} are more than the model's context "
                f"of {model.max_model_len} tokens"
            )
        draw = random.Random(0)
        params = SamplingParams(temperature=1.0, ignore_eos=True, max_tokens=options.output_len, detokenize=False)

        def measure() -> float:
            prompts = [
                [draw.randrange(model.vocab_size) for _ in range(options.input_len)]
                for _ in range(options.batch_size)  # new ones each time: a prefix that is cached costs nothing
            ]
            start = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            return time.perf_counter() - start

        for _ in range(options.num_iters_warmup):
            measure()
        seconds = [measure() for _ in tqdm(range(options.num_iters), desc="Batches", disable=options.disable_tqdm)]
    shares = {f"{share:g}": percentile(seconds, share) for share in options.percentiles}
    listed = ", ".join(f"p{share} {value:.4f} s" for share, value in shares.items())
    tokens = options.batch_size * options.output_len / statistics.fmean(seconds)
    print(
        f"batches of {options.batch_size}, {options.input_len} tokens in, {options.output_len} out: "
        f"mean {statistics.fmean(seconds):.4f} s, median {statistics.median(seconds):.4f} s, {listed}; "
        f"{tokens:,.1f} output tokens/s"
    )
    write_json(
        options.result_json,
        {"avg_latency": statistics.fmean(seconds), "latencies": seconds, "percentiles": shares},
    )
