"""Write a tiny Tidal with random weights, and with a tokenizer that reads bytes:  python -m tidal.checkpoint FOLDER"""

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tidal.reference import TidalConfig, TidalForCausalLM


def save(folder: str) -> None:
    torch.manual_seed(0)
    TidalConfig.register_for_auto_class()  # so that the code is saved beside the weights, as models are published
    TidalForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    model = TidalForCausalLM(TidalConfig(architectures=["TidalForCausalLM"], eos_token_id=256))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*alphabet, "<end>"])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


if __name__ == "__main__":
    save(sys.argv[1])
