"""`vllm check MODEL`: is what this engine computes what transformers computes?

Random prompts are continued greedily while the logits of every step are kept; transformers then computes the same
positions in one pass.  The measure of what is right is transformers itself: in the engine's dtype it differs from itself
in float32 by its own rounding, and the engine may differ by a few times that.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from dataclasses import dataclass
from typing import Any

from vllm.config import EngineArgs
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options
from vllm.errors import ConfigError, ModelError

EPILOG = "The exit status is 0 if the model is right, 1 if it is not.  transformers loads the model a second time, in float32."

_ROUNDINGS = 4.0
"""How many times transformers' own rounding the engine may be off: orders of addition differ, precision does not."""
_EXACT = 1e-5
"""Relative error that float32 itself has over the depth of a model."""
_QUANTIZED = {"int8": 0.12, "fp8": 0.3, "int4": 0.6}
"""Relative error of logits that a quantization may cost (root mean square, relative to the logits' own spread)."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the engine did with one prompt: N new tokens and the logits they were chosen from, [N, V]."""

    prompt: list[int]
    tokens: list[int]
    logits: Any


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds to load, and tokens per second."""

    load: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the engine is from transformers in float32.

    Errors are root mean squares relative to the logits' own spread (their standard deviation); greedy tokens are close where
    transformers finds the engine's token as good as its own within that error.
    """

    error: float
    allowed: float
    equal: int
    close: int
    total: int

    @property
    def right(self) -> bool:
        return self.error <= self.allowed and self.equal + self.close == self.total


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--num-prompts", type=int, default=4, help="random prompts (default: %(default)s)")
    parser.add_argument("--prompt-len", type=int, default=32, help="tokens of each (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=16, help="new tokens of each (default: %(default)s)")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> int:
    for name in ("num_prompts", "prompt_len", "max_tokens"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    args = EngineArgs(**engine_options(options))
    if args.load_format == "dummy":
        raise ConfigError("load_format='dummy' makes weights up, so there is nothing to compare with; leave it out")
    runs, speed, model = compute(args, options.num_prompts, options.prompt_len, options.max_tokens)
    verdict = compare(runs, model, args)
    print(describe(verdict, speed, model, args))
    return 0 if verdict.right else 1


def compute(args: EngineArgs, num_prompts: int, prompt_len: int, max_tokens: int) -> tuple[list[Run], Speed, Any]:
    """Run the engine.  Return its runs, its speed and its model's configuration."""
    from vllm.entrypoints.llm import LLM
    from vllm.sampling_params import SamplingParams

    start = time.perf_counter()
    llm = LLM.from_engine_args(args)
    load = time.perf_counter() - start
    with llm:
        model = llm.llm_engine.model_config
        if prompt_len + max_tokens > model.max_model_len:
            raise ConfigError(
                f"--prompt-len {prompt_len} and --max-tokens {max_tokens} are more than the model's context of "
                f"{model.max_model_len} tokens; lower one of them"
            )
        draw = random.Random(args.seed)
        prompts = [[draw.randrange(model.vocab_size) for _ in range(prompt_len)] for _ in range(num_prompts)]
        kept: list[list[Any]] = [[] for _ in prompts]
        params = [
            SamplingParams(
                temperature=0,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                logits_processors=[_keeper(rows)],
            )
            for rows in kept
        ]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        speed = Speed(load, *_speeds(llm, prompts[0], max_tokens))
    runs = [
        Run(ids, output.outputs[0].token_ids, _stack(rows))
        for ids, output, rows in zip(prompts, outputs, kept, strict=True)
    ]
    return runs, speed, model


def compare(runs: list[Run], model: Any, args: EngineArgs) -> Verdict:
    """Compute the same positions with transformers, and judge."""
    exact = _reference(runs, model, "float32", args.hf_overrides)
    if model.quantization:
        allowed = _QUANTIZED[model.quantization]
    elif model.dtype == "float32":
        allowed = _EXACT * _ROUNDINGS
    else:
        rounded = _reference(runs, model, model.dtype, args.hf_overrides)
        allowed = _ROUNDINGS * _error(rounded, exact) + _EXACT
    if args.kv_cache_dtype == "int8":
        allowed += _QUANTIZED["int8"]
    error = _error([one.logits for one in runs], exact)
    equal = close = 0
    for one, reference in zip(runs, exact, strict=True):
        slack = 2 * 4 * min(error, allowed) * float(reference.std())  # two logits, each within four standard errors
        for token, row in zip(one.tokens, reference, strict=True):
            behind = float(row.max() - row[token])
            equal += behind == 0.0
            close += 0.0 < behind <= slack
    return Verdict(error, allowed, equal, close, sum(len(one.tokens) for one in runs))


def describe(verdict: Verdict, speed: Speed, model: Any, args: EngineArgs) -> str:
    """Return the one line."""
    precision = ", ".join(filter(None, [model.dtype, model.quantization, args.kv_cache_dtype.replace("auto", "")]))
    close = f" ({verdict.close} more as good)" if verdict.close else ""
    return (
        f"{'right' if verdict.right else 'WRONG'}: {model.model or 'the model inside'} ({precision}): "
        f"{verdict.equal} of {verdict.total} greedy tokens are transformers'{close}; logits differ by "
        f"{verdict.error:.2g} of their spread, where {verdict.allowed:.2g} is allowed; "
        f"loaded in {speed.load:.1f} s, prefill {speed.prefill:,.0f} tokens/s, decode {speed.decode:,.1f} tokens/s"
    )


def _keeper(rows: list[Any]) -> Any:
    def keep(_tokens: list[int], logits: Any) -> Any:
        rows.append(logits.detach().float().clone())
        return logits

    return keep


def _stack(rows: list[Any]) -> Any:
    import torch

    return torch.stack([row.reshape(-1) for row in rows])


def _speeds(llm: Any, prompt: list[int], max_tokens: int) -> tuple[float, float]:
    """Time one request alone: tokens per second until its first token, and after it."""
    from vllm.sampling_params import SamplingParams

    llm.reset_prefix_cache()
    params = SamplingParams(temperature=0, max_tokens=max(2, max_tokens), ignore_eos=True, detokenize=False)
    start = time.monotonic()
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    metrics, count = output.metrics, len(output.outputs[0].token_ids)
    first, last = metrics.first_token_time, metrics.finished_time
    return len(prompt) / (first - start), (count - 1) / max(last - first, 1e-9)


def _reference(runs: list[Run], model: Any, dtype: str, overrides: dict[str, Any]) -> list[Any]:
    """Return transformers' logits for each run's new tokens, [N, V] in float32."""
    import torch

    reference = _load_reference(model, getattr(torch, dtype), overrides)
    found = []
    with torch.inference_mode():
        for one in runs:
            ids = torch.tensor([[*one.prompt, *one.tokens[:-1]]])
            logits = reference(ids).logits[0, len(one.prompt) - 1 :]
            found.append(logits[:, : one.logits.shape[1]].float())
    del reference
    gc.collect()
    return found


def _load_reference(model: Any, dtype: Any, overrides: dict[str, Any]) -> Any:
    """Load the model with transformers.  Raises ModelError if it can't."""
    from transformers import AutoConfig, AutoModelForCausalLM

    code = {"trust_remote_code": model.trust_remote_code, "code_revision": model.code_revision}
    try:
        config = AutoConfig.from_pretrained(model.path, **code)
        config.update(overrides)
        loaded = AutoModelForCausalLM.from_pretrained(
            model.path, config=config, dtype=dtype, attn_implementation="eager", **code
        )
    except Exception as error:  # whatever transformers, or the model's own code, does not like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "" if model.trust_remote_code else "; if code comes with the checkpoint, pass --trust-remote-code"
        raise ModelError(
            f"{model.path}: transformers, which is to be compared with, can't load it: {reason}{hint}"
        ) from error
    return loaded.eval()


def _error(some: list[Any], exact: list[Any]) -> float:
    """The root mean square of the difference, relative to the exact values' standard deviation."""
    import torch

    a, b = torch.cat(some), torch.cat(exact)
    finite = torch.isfinite(b)
    return float((a - b)[finite].pow(2).mean().sqrt() / b[finite].std())
