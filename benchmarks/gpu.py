"""The engine on a GPU beside transformers on the same one:  python -m benchmarks.gpu [--shape NAME] [--out FOLDER]

Weights are random and made on the device.  First the device itself is measured, then tiny models are compared with the CPU, token by
token, then each shape is run by each engine in a process of its own.  A floor is what the work would take if the device did
nothing but read the bytes it must at the rate of a copy, or nothing but multiply at the rate of a large product.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

GPU = "gpu.json"
SEED = 20250101
CONTEXT = 1024
STEPS = 40
BATCHES = (1, 8, 64, 256)
LONG = 8192
NUM_MIXED = 512

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "head_dim": 128,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "vocab_size": 151936,
    },
}  # fmt: skip
_COMMON = {
    "max_position_embeddings": 16384, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu", "bos_token_id": 0,
    "eos_token_id": 1, "dtype": "bfloat16", "torch_dtype": "bfloat16",
}  # fmt: skip


def config_of(shape: str) -> dict[str, Any]:
    """Return the config.json of a shape."""
    return {"tie_word_embeddings": False} | _COMMON | SHAPES[shape]


def sizes_of(shape: str) -> dict[str, float]:
    """Return the bytes and operations that a token costs: weights read, multiplications, bytes of keys and values."""
    config = config_of(shape)
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    head_dim = config.get("head_dim", hidden // config["num_attention_heads"])
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    attention = hidden * head_dim * 2 * (heads + kv_heads)
    width = config["intermediate_size"]
    if experts := config.get("num_experts"):
        width = config["moe_intermediate_size"]
        chosen = config["num_experts_per_tok"]
    else:
        experts = chosen = 1
    expert = 3 * hidden * width
    return {
        "dense": layers * attention,
        "expert": layers * expert,
        "experts": experts,
        "chosen": chosen,
        "head": config["vocab_size"] * hidden,
        "kv": layers * 2 * kv_heads * head_dim * 2,
        "attention": 4 * layers * heads * head_dim,
    }


def decode_bytes(shape: str, batch: int, context: float) -> float:
    """Return the bytes that a step of `batch` sequences must read."""
    sizes = sizes_of(shape)
    share = 1 - (1 - sizes["chosen"] / sizes["experts"]) ** batch  # of the experts that somebody chooses
    weights = sizes["dense"] + sizes["expert"] * sizes["experts"] * share + sizes["head"]
    return 2 * weights + batch * context * sizes["kv"]


def prefill_operations(shape: str, tokens: int) -> float:
    """Return the floating-point operations of a prompt."""
    sizes = sizes_of(shape)
    linear = 2 * (sizes["dense"] + sizes["expert"] * sizes["chosen"]) * tokens + 2 * sizes["head"]
    return linear + sizes["attention"] * tokens * tokens / 2


def mixed_load() -> list[tuple[list[int], int]]:
    """Return prompts of 32 to 512 tokens with the 16 to 128 that shall follow."""
    rng = random.Random(SEED)
    return [(_ids(rng, rng.randint(32, 512)), rng.randint(16, 128)) for _ in range(NUM_MIXED)]


def _ids(rng: random.Random, count: int) -> list[int]:
    return rng.choices(range(100, 30000), k=count)


# ── the device ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def measure_device() -> dict[str, Any]:
    """Return the device's name, the bytes per second of a copy and the operations per second of a large product."""
    import torch

    copied, summed = _memory_rates()
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = _time(lambda: a @ b)
    return {
        "name": torch.cuda.get_device_name(), "torch": torch.__version__, "copy": copied, "read": summed,
        "matrix": 2 * 8192**3 / product,
    }  # fmt: skip


def _memory_rates() -> tuple[float, float]:
    """Return the bytes per second of a copy, those read and those written, and of a sum."""
    import torch

    source = torch.empty(2 << 30, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    copy = _time(lambda: torch.mul(source, 1.0, out=target))  # a kernel; the copy engine is slower
    return 2 * source.nbytes / copy, source.nbytes / _time(source.sum)


def _time(function: Any, repeats: int = 10) -> float:
    import torch

    for _ in range(3):
        function()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


KINDS: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma2": {}, "gemma3_text": {}, "phi3": {},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 16},
    "recurrent_gemma": {"lru_width": 64},
    "qwen3_next": {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
}  # fmt: skip
"""Architecture → what its tiny model has beside what all have"""


def compare_with_cpu(kinds: Iterable[str] = KINDS) -> dict[str, list[bool]]:
    """Return, per architecture, whether greedy tokens of a tiny model are the same on one GPU, and some also on two if there are
    as many, as on the CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from vllm import LLM, SamplingParams

    tiny = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    prompts = [{"prompt_token_ids": [(7 * i + 3 * j) % 290 + 5 for j in range(5 + 37 * i)]} for i in range(6)]
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    found = {}
    for kind in kinds:
        config = AutoConfig.for_model(kind, **tiny | KINDS[kind])
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)  # so that tokens depend on what was before
            model.save_pretrained(folder)
            tokens = []
            pairs = torch.cuda.device_count() > 1 and kind in ("llama", "qwen3_moe")  # a pair takes long to start
            for where in [("cpu", 1), ("cuda", 1)] + [("cuda", 2)] * pairs:
                llm = LLM(
                    folder, device=where[0], tensor_parallel_size=where[1], dtype="float32", skip_tokenizer_init=True,
                    max_num_seqs=8,
                )  # fmt: skip
                outputs = llm.generate(prompts, params, use_tqdm=False)
                tokens.append([output.outputs[0].token_ids for output in outputs])
                llm.llm_engine.close()
            found[kind] = [other == tokens[0] for other in tokens[1:]]
    return found


# ── this engine ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Ours:
    """This engine over a shape, without text."""

    def __init__(self, shape: str, options: dict[str, Any]) -> None:
        began = time.perf_counter()
        from vllm import LLM

        self.folder = tempfile.TemporaryDirectory()
        Path(self.folder.name, "config.json").write_text(json.dumps(config_of(shape)))
        self.llm = LLM(
            self.folder.name, load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False, device="cuda",
            **options,
        )  # fmt: skip
        self.run([(list(range(100, 228)), 1)])
        self.start = time.perf_counter() - began

    def run(self, load: list[tuple[list[int], int]]) -> float:
        """Serve requests that come all at once; return the seconds."""
        from vllm import SamplingParams

        params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for _, count in load]
        began = time.perf_counter()
        self.llm.generate([{"prompt_token_ids": prompt} for prompt, _ in load], params, use_tqdm=False)
        return time.perf_counter() - began

    def decode(self, batch: int) -> tuple[float, float]:
        """Return the seconds of a step in which each of `batch` sequences gets a token, and how long they are then."""
        from vllm import SamplingParams
        from vllm.garbage import old_objects_spared

        engine, rng = self.llm.llm_engine, random.Random(batch)
        params = SamplingParams(temperature=0, max_tokens=4 * STEPS, ignore_eos=True)
        for number in range(batch):
            engine.add_request(str(number), {"prompt_token_ids": _ids(rng, CONTEXT)}, params)
        scheduler = engine.scheduler
        while any(request.num_output < STEPS // 2 for request in scheduler.waiting + scheduler.running):
            engine.step()
        times, before = [], time.perf_counter()
        with old_objects_spared():
            for _ in range(STEPS):
                engine.step()
                now = time.perf_counter()
                times.append(now - before)
                before = now
        context = statistics.mean(len(request.tokens) for request in scheduler.running) - STEPS / 2
        engine.abort_request([str(number) for number in range(batch)])
        while engine.has_work:
            engine.step()
        return statistics.median(times), context


def run_ours(shape: str, options: dict[str, Any], batches: tuple[int, ...]) -> dict[str, Any]:
    ours = Ours(shape, options)
    found: dict[str, Any] = {"start": ours.start}
    found["decode"] = {batch: ours.decode(batch) for batch in batches}
    rng = random.Random(SEED)
    found["prefill"] = statistics.median(ours.run([(_ids(rng, LONG), 1)]) for _ in range(5))
    load = mixed_load()
    ours.run(load)
    found["mixed"] = statistics.median(ours.run(load) for _ in range(3))
    return found


# ── transformers ────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_transformers(shape: str) -> dict[str, Any]:
    """Generate by transformers: a batch of one length, then the mixed load by its continuous batching."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    values = config_of(shape)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        torch.set_default_dtype(torch.float32)
    found: dict[str, Any] = {"decode": {}}
    for batch in (1, 64):
        ids = torch.tensor([_ids(random.Random(i), CONTEXT) for i in range(batch)], device="cuda")
        times = []
        for count in (4, 4, 36):
            torch.cuda.synchronize()
            began = time.perf_counter()
            with torch.inference_mode():
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                    do_sample=False, pad_token_id=0,
                )  # fmt: skip
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        found["decode"][batch] = (times[2] - times[1]) / 32
    settings = GenerationConfig(max_new_tokens=128, do_sample=False, eos_token_id=-1, pad_token_id=0)
    load = mixed_load()
    rounds = []
    for _ in range(2):
        with model.continuous_batching_context_manager(generation_config=settings) as manager:
            began = time.perf_counter()
            for prompt, count in load:
                manager.add_request(prompt, max_new_tokens=count)
            tokens = 0
            for _ in load:
                output = manager.get_result(timeout=200)
                assert output is not None, "transformers gave no answer in 200 s"
                tokens += len(output.generated_tokens)
            rounds.append(time.perf_counter() - began)
    found["mixed"], found["mixed_tokens"] = min(rounds), tokens
    return found


# ── the report ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def lines(record: dict[str, Any]) -> Iterator[str]:
    """Yield what a record says, in Markdown."""
    device = record["device"]
    yield (
        f"{device['name']}, torch {device['torch']}: a copy moves {device['copy'] / 1e12:.2f} TB/s, a sum reads "
        f"{device['read'] / 1e12:.2f} TB/s, a product of 8192³ in bfloat16 runs at {device['matrix'] / 1e12:.0f} TFLOP/s. "
        f"`{record['command']}`, {record['made']}. A floor is what the work would take if the device did nothing but read "
        "the bytes it must as fast as it copies, or nothing but multiply as fast as it does the large product.\n"
    )
    if record.get("check"):
        same = [kind for kind, found in record["check"].items() if all(found)]
        other = [kind for kind, found in record["check"].items() if not all(found)]
        yield f"Greedy tokens of tiny models in float32 are those of the CPU for {', '.join(same)}" + (
            f"; not for {', '.join(other)}.\n" if other else ".\n"
        )
    for shape, found in record["shapes"].items():
        if "failed" in found["ours"]:
            yield f"{shape}: {found['ours']['failed']}\n"
            continue
        yield f"### {shape}, bfloat16\n"
        yield from _table(shape, device, found["ours"], found.get("transformers") or {})
        yield ""
        for count, several in found.get("several", {}).items():
            yield from _several(count, found["ours"], several)


def _table(shape: str, device: dict[str, Any], ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    yield "| work | this engine | share of the floor | transformers | ratio |"
    yield "|---|---|---|---|---|"
    for batch, (seconds, context) in ours["decode"].items():
        floor = decode_bytes(shape, int(batch), context) / device["copy"]
        other = theirs.get("decode", {}).get(batch)
        compared = f"{other * 1e3:.2f} ms | {other / seconds:.1f}×" if other else " | "
        yield (
            f"| decode, {batch} sequences of about {context:.0f} tokens | {seconds * 1e3:.2f} ms a step, "
            f"{int(batch) / seconds:,.0f} tokens/s | {floor / seconds:.0%} of the bandwidth | {compared} |"
        )
    share = prefill_operations(shape, LONG) / device["matrix"] / ours["prefill"]
    yield f"| prefill of {LONG:,} tokens | {ours['prefill'] * 1e3:.0f} ms | {share:.0%} of the matrix rate | | |"
    tokens = sum(count for _, count in mixed_load())
    other = theirs.get("mixed")
    compared = f"{tokens / other:,.0f} tokens/s | {other / ours['mixed']:.1f}×" if other else " | "
    yield (
        f"| {NUM_MIXED} requests of 32-512 tokens, 16-128 out, at once | {tokens / ours['mixed']:,.0f} tokens/s | | "
        f"{compared} |"
    )
    yield f"| start to first token, weights made on the device | {ours['start']:.1f} s | | | |"


def _several(count: str, ours: dict[str, Any], several: dict[str, Any]) -> Iterator[str]:
    if "failed" in several:
        yield f"On {count} GPUs: {several['failed']}.\n"
        return
    for batch, (seconds, _) in several["decode"].items():
        gain = ours["decode"][batch][0] / seconds
        yield f"* On {count} GPUs a decode step of {batch} takes {seconds * 1e3:.2f} ms, {gain:.2f}× as fast as on one."
    yield f"* On {count} GPUs the prefill takes {several['prefill'] * 1e3:.0f} ms, {ours['prefill'] / several['prefill']:.2f}× as fast."
    yield f"* On {count} GPUs the {NUM_MIXED} requests take {several['mixed']:.2f} s, {ours['mixed'] / several['mixed']:.2f}× as fast."
    yield ""


def _child(*arguments: str) -> Any:
    """Run this module in a process of its own, whose last line is its answer."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["llama-3.1-8b"])
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--options", type=json.loads, default={}, help="more options of the engine, as JSON")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--no-check", action="store_true", help="leave out the comparison with the CPU")
    parser.add_argument("--several", type=int, default=1, help="measure this engine on so many GPUs too")
    parser.add_argument("--out", type=Path, help=f"folder that gets {GPU}, which the report shows")
    parser.add_argument("--only", choices=("device", "check", "ours", "transformers"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = options.shape[0]
    single = {
        "device": measure_device,
        "check": compare_with_cpu,
        "ours": lambda: run_ours(shape, options.options, tuple(options.batches)),
        "transformers": lambda: run_transformers(shape),
    }
    if options.only:
        print("\n" + json.dumps(single[options.only]()))
        return
    record: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "device": _child("--only", "device"),
        "check": None if options.no_check else _child("--only", "check"),
        "shapes": {},
    }
    for name in options.shape:
        sizes = ["--shape", name, "--batches", *map(str, options.batches), "--options"]
        found = record["shapes"][name] = {"ours": _child("--only", "ours", *sizes, json.dumps(options.options))}
        if options.several > 1:
            more = options.options | {"tensor_parallel_size": options.several}
            found["several"] = {str(options.several): _child("--only", "ours", *sizes, json.dumps(more))}
        if not options.no_peer:
            found["transformers"] = _child("--only", "transformers", "--shape", name)
        print(json.dumps(record), flush=True)
    print("\n".join(lines(record)))
    if options.out:
        _keep(options.out / GPU, record)


def _keep(file: Path, record: dict[str, Any]) -> None:
    """Put a record beside those of other shapes, in the place of one of the same."""
    earlier = json.loads(file.read_text()) if file.is_file() else []
    kept = [other for other in earlier if other["shapes"].keys() != record["shapes"].keys()]
    file.write_text(json.dumps([*kept, record], indent=1) + "\n")


if __name__ == "__main__":
    main()
