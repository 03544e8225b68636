"""The checkpoints that are measured: random weights from a fixed seed, the same in every format.

    <work>/checkpoints/<shape>/  config.json  model.safetensors  model-bf16.gguf  model-q8_0.gguf  model-q4_0.gguf

The safetensors file is written first, by the environment of our engine, which has torch; GGUF files are made from it by
the environment of llama.cpp, which has gguf and numpy.  What exists is kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.shapes import QWEN_HALF_BILLION, Shape

if TYPE_CHECKING:
    import numpy as np

SEED = 1
SPREAD = 0.02
GGUF_KINDS = ("bf16", "q8_0", "q4_0")
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def path_of(kind: str, work: Path) -> Path:
    """Where a checkpoint is: a folder for "safetensors", a file for the kinds of GGUF."""
    folder = work.absolute() / "checkpoints" / "qwen2.5-0.5b"
    return folder if kind == "safetensors" else folder / f"model-{kind}.gguf"


def make(kind: str, work: Path, python: Path) -> None:
    """Make a checkpoint with an interpreter whose environment can write it, unless it is there."""
    path = path_of(kind, work)
    if not (path / "model.safetensors" if kind == "safetensors" else path).is_file():
        command = [str(python), "-m", "benchmarks.checkpoints", kind, "--work", str(work.absolute())]
        subprocess.run(command, cwd=Path(__file__).parents[1], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoints", description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=("safetensors", *GGUF_KINDS))
    parser.add_argument("--work", type=Path, default=Path(".bench"))
    options = parser.parse_args()
    folder = path_of("safetensors", options.work)
    if options.kind == "safetensors":
        write_safetensors(QWEN_HALF_BILLION, folder)
    else:
        write_gguf(QWEN_HALF_BILLION, folder, options.kind, path_of(options.kind, options.work))


def write_safetensors(shape: Shape, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    random = torch.Generator().manual_seed(SEED)
    weights = {}
    for name, sizes in tensor_sizes(shape).items():
        if name.endswith("norm.weight"):
            weights[name] = torch.ones(sizes, dtype=torch.bfloat16)
        else:
            weights[name] = torch.empty(sizes, dtype=torch.bfloat16).normal_(0, SPREAD, generator=random)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}) + "\n")
    part = folder / "part.safetensors"
    save_file(weights, part, metadata={"format": "pt"})
    part.rename(folder / "model.safetensors")


def tensor_sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors by name."""
    width, inner, kv_width = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, width)}
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        for name, rows in (("q_proj", width), ("k_proj", kv_width), ("v_proj", kv_width)):
            sizes[f"{block}.self_attn.{name}.weight"] = (rows, width)
            sizes[f"{block}.self_attn.{name}.bias"] = (rows,)
        sizes[f"{block}.self_attn.o_proj.weight"] = (width, width)
        sizes[f"{block}.mlp.gate_proj.weight"] = (inner, width)
        sizes[f"{block}.mlp.up_proj.weight"] = (inner, width)
        sizes[f"{block}.mlp.down_proj.weight"] = (width, inner)
        sizes[f"{block}.input_layernorm.weight"] = (width,)
        sizes[f"{block}.post_attention_layernorm.weight"] = (width,)
    sizes["model.norm.weight"] = (width,)
    return sizes


def write_gguf(shape: Shape, folder: Path, kind: str, path: Path) -> None:
    """Write the safetensors file's weights in another format."""
    import gguf

    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen2")
    writer.add_name("qwen2.5-0.5b shape, random weights")
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.max_positions)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-6)
    file_types = {"bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(gguf.LlamaFileType[file_types[kind]])
    _add_tokenizer(writer, shape.vocab)
    for name, values in read_bf16(folder / "model.safetensors"):
        target = gguf_name(name)
        wanted = gguf.GGMLQuantizationType[gguf_kind(target, values.ndim, shape, kind)]
        writer.add_tensor(target, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.rename(path)


def gguf_name(name: str) -> str:
    """The name of a checkpoint's tensor in a GGUF file."""
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, part = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.{part}"


def gguf_kind(name: str, num_dimensions: int, shape: Shape, kind: str) -> str:
    """The type of a tensor: vectors stay in float32, and what serves as head is kept in 8 bits where llama.cpp's own
    converter does so, which is where rows are no multiple of 256."""
    if num_dimensions == 1:
        return "F32"
    if name == "token_embd.weight" and kind == "q4_0" and shape.hidden % 256:
        return "Q8_0"
    return kind.upper()


def read_bf16(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a safetensors file that holds bfloat16 alone, as float32."""
    import numpy as np

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        start = file.tell()
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            upper_halves = np.frombuffer(file.read(end - begin), dtype=np.uint16).astype(np.uint32)
            yield name, (upper_halves << 16).view(np.float32).reshape(entry["shape"])


def _add_tokenizer(writer: Any, vocab: int) -> None:
    """A byte-level tokenizer that nobody uses, because some engines do not load a model without one."""
    import gguf

    alphabet = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokens = ["<|begin|>", "<|end|>", *alphabet, "th"]
    tokens += [f"<|{index}|>" for index in range(len(tokens), vocab)]
    normal, control, unused = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNUSED
    types = [control] * 2 + [normal] * (len(alphabet) + 1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types + [unused] * (vocab - len(types)))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main()
