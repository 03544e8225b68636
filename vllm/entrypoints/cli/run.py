"""`vllm run [MODEL] PROMPT`: continue a prompt, or answer it."""

from __future__ import annotations

import argparse

from vllm.config import EngineArgs
from vllm.entrypoints.cli.options import add_engine_options, engine_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", default=EngineArgs.model, help="folder or Hub name; none: the model inside")
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="answer the prompt through the model's chat template")
    parser.add_argument("--max-tokens", type=int, default=64, help="output tokens at most (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=None, help="0 is greedy (default: the model's)")
    parser.add_argument("-n", type=int, default=1, help="number of outputs (default: %(default)s)")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    from vllm.sampling_params import SamplingParams

    temperature = 1.0 if options.temperature is None else options.temperature
    SamplingParams(
        n=options.n, max_tokens=options.max_tokens, temperature=temperature
    )  # a mistake shows before loading

    from vllm.entrypoints.llm import LLM

    with LLM(**engine_options(options)) as llm:
        params = llm.get_default_sampling_params()
        params.max_tokens, params.n = options.max_tokens, options.n
        if options.temperature is not None:
            params.temperature = options.temperature
        if options.chat:
            (output,) = llm.chat([{"role": "user", "content": options.prompt}], params)
        else:
            (output,) = llm.generate(options.prompt, params)
    for completion in output.outputs:
        print(completion.text if options.chat else options.prompt + completion.text)
