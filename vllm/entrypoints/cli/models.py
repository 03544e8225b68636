"""`vllm models [MODEL]`: which architectures are supported, or how one model would be computed and what it needs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from vllm.config import EngineArgs
from vllm.entrypoints.cli.options import add_engine_options, add_model, engine_options

EPILOG = """examples:
  vllm models                       all architectures
  vllm models Qwen/Qwen3-0.6B       what a model of the Hub takes; its weights are not downloaded
  vllm models ./my-model --dtype float32
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    given = engine_options(options)
    facts = describe(EngineArgs(**given)) if "model" in given else supported()
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for title, value in facts.items():
        if isinstance(value, list):
            print(f"{title}:", *(f"  {entry}" for entry in value), sep="\n")
        else:
            print(f"{title}: {value}")


def supported() -> dict[str, Any]:
    """Return the names of all architectures, by who computes them."""
    from vllm.models.foreign_names import DECODERS
    from vllm.models.media.kinds import KINDS
    from vllm.models.registry import ARCHITECTURES, ENCODERS, FALLBACKS
    from vllm.plugins import load_plugins

    load_plugins()
    return {
        "generate, by families here": sorted(ARCHITECTURES),
        "generate, by transformers' modules": sorted(DECODERS - ARCHITECTURES.keys()),
        "see or hear, by families here": sorted(KINDS),
        "pool, by families here (bases of names)": sorted(ENCODERS),
        "pool, by transformers' modules (bases of names)": sorted(FALLBACKS),
    }


def describe(args: EngineArgs) -> dict[str, Any]:
    """Return how a model would be computed, and what it needs.  Raises ConfigError or ModelError if it can't be."""
    from vllm.engine.setup import resolve
    from vllm.models.foreign_names import PACKED
    from vllm.models.registry import find

    settings = dataclasses.replace(args, load_format="dummy", skip_tokenizer_init=True)
    config, _ = resolve(settings)
    model = config.model
    architecture = find(model.hf_config, args.model_impl)
    route = architecture.body if isinstance(architecture.body, str) else repr(architecture.body)
    foreign = "over the paged cache" if architecture.name in PACKED else "one request at a time"
    facts = {
        "architecture": architecture.name,
        "computed by": route or f"transformers' own module, {foreign}",
        "tasks": "generate" if model.pooling is None else ", ".join(model.pooling.tasks),
        "context": f"{model.max_model_len:,} tokens",
        "dtype": model.dtype,
        "device": config.device,
    }
    if stored := _stored_bytes(Path(model.path)):
        facts["weights"] = f"{stored / 2**30:.2f} GiB as they are stored"
    if code := getattr(model.hf_config, "auto_map", None):
        facts["code that comes with it"] = f"{', '.join(code)} (run only with --trust-remote-code)"
    return facts


def _stored_bytes(folder: Path) -> int:
    """Return the size of a checkpoint's weights: of its files, or what their index says."""
    index = folder / "model.safetensors.index.json"
    if files := list(folder.glob("*.safetensors")) or list(folder.glob("pytorch_model*.bin")):
        return sum(file.stat().st_size for file in files)
    if not index.is_file():
        return 0
    return int(json.loads(index.read_text()).get("metadata", {}).get("total_size", 0))
