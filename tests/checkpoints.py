"""Tiny whole checkpoints: weights from a config, with a tokenizer trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "opt": {"num_key_value_heads": None, "intermediate_size": None, "ffn_dim": 64, "word_embed_proj_dim": 48},
    "gemma2": {"head_dim": 12, "sliding_window": 24, "query_pre_attn_scalar": 12, "num_hidden_layers": 4},
    "mamba2": {"num_heads": 6, "head_dim": 16, "n_groups": 2, "state_size": 12, "eos_token_id": 0},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Give a transformers model weights under which every one of its parts matters."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=max(0.3, 1.6 / parameter.shape[-1] ** 0.5))
        else:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.float().eval()


def save_checkpoint(
    folder: Path, tokenizer_folder: Path, model_type: str, head: str = "ForCausalLM", **changes: Any
) -> Path:
    """Write a model folder with weights under which every part of the model matters.

    `head` is the end of the transformers class's name: "ForCausalLM", "ForSequenceClassification", … or nothing.
    """
    fields = {**SIZES, **KINDS.get(model_type, {}), **changes}
    config = AutoConfig.for_model(model_type, **{name: value for name, value in fields.items() if value is not None})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = spread(getattr(transformers, f"AutoModel{head}").from_config(config))
        model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def reference(folder: Path, head: str = "ForCausalLM") -> PreTrainedModel:
    """The checkpoint in transformers, in float32."""
    kind = getattr(transformers, f"AutoModel{head}")
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.inference_mode()
def generate(model: PreTrainedModel, prompt: list[int], max_tokens: int, **options: Any) -> Any:
    """transformers' generate for one prompt; greedy unless told otherwise, and not stopped by an end token."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 1, **options}
    result = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, **options)
    return result if options.get("return_dict_in_generate") else result[0, len(prompt) :].tolist()
