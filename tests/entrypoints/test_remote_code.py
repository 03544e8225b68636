"""An encoder whose code comes with its checkpoint embeds as transformers has it, once it is trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from vllm import LLM
from vllm.errors import ModelError

CODE = """
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput


class LagoonConfig(PretrainedConfig):
    model_type = "lagoon"
    vocab_size: int = 512
    hidden_size: int = 16
    max_position_embeddings: int = 64


class LagoonModel(PreTrainedModel):
    config_class = LagoonConfig
    base_model_prefix = "lagoon"

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids, **_):
        x = self.embed(input_ids)
        return BaseModelOutput(last_hidden_state=self.mix(x + x.mean(dim=1, keepdim=True)).tanh())
"""


@pytest.fixture
def lagoon(tmp_path: Path, tokenizer_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = shutil.copytree(tokenizer_folders["byte level"], tmp_path / "lagoon")
    (folder / "code.py").write_text(CODE)
    references = {"AutoConfig": "code.LagoonConfig", "AutoModel": "code.LagoonModel"}
    config = {"model_type": "lagoon", "architectures": ["LagoonModel"], "auto_map": references}
    (folder / "config.json").write_text(json.dumps(config))
    draw = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (512, 16), "mix.weight": (16, 16), "mix.bias": (16,)}
    weights = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_it_embeds_once_it_is_trusted(lagoon: Path) -> None:
    prompts = ["The tide comes in.", "Hello"]
    with LLM(str(lagoon), trust_remote_code=True, dtype="float32") as llm:
        outputs = llm.embed(prompts, use_tqdm=False)
    reference = AutoModel.from_pretrained(lagoon, trust_remote_code=True).eval()
    for output in outputs:
        with torch.inference_mode():
            states = reference(torch.tensor([output.prompt_token_ids]))[0][0]
        expected = torch.nn.functional.normalize(states[0], dim=0)
        torch.testing.assert_close(torch.tensor(output.outputs.embedding), expected, rtol=1e-5, atol=1e-6)


def test_it_does_not_run_before(lagoon: Path) -> None:
    (lagoon / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match=r"defined by code that comes with the model .*trust_remote_code=True"):
        LLM(str(lagoon), task="embed")
