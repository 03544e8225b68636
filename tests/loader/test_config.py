"""config.json becomes a configuration, overrides take effect, and what is wrong is said in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vllm.errors import ConfigError, ModelError
from vllm.loader.config import read_config, read_generation_config

WriteConfig = Callable[..., Path]


def test_a_configuration_is_read(write_config: WriteConfig) -> None:
    config = read_config(write_config())
    assert config.model_type == "llama"
    assert config.hidden_size == 64 and config.architectures == ["LlamaForCausalLM"]
    assert config.rope_parameters["rope_theta"] == 500000.0


def test_derived_values_follow_an_override(write_config: WriteConfig) -> None:
    config = read_config(write_config(), hf_overrides={"hidden_size": 128})
    assert (config.hidden_size, config.head_dim) == (128, 32)


def test_an_override_may_be_a_function(write_config: WriteConfig) -> None:
    def change(config):  # type: ignore[no-untyped-def]
        config.num_hidden_layers = 1
        return config

    assert read_config(write_config(), hf_overrides=change).num_hidden_layers == 1


def test_a_misspelled_override_is_refused(write_config: WriteConfig) -> None:
    with pytest.raises(ConfigError, match=r"'hiden_size', which LlamaConfig does not know. Did you mean 'hidden_size'"):
        read_config(write_config(), hf_overrides={"hiden_size": 128})


def test_an_override_of_a_part_keeps_the_rest_of_the_part(write_config: WriteConfig) -> None:
    path = write_config(model_type="gemma3", text_config={"hidden_size": 32, "num_hidden_layers": 3}, rope_theta=None)
    config = read_config(path, hf_overrides={"text_config": {"num_hidden_layers": 1}})
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (32, 1)
    with pytest.raises(ConfigError, match=r"hf_overrides\['text_config'\] has 'layers'"):
        read_config(path, hf_overrides={"text_config": {"layers": 1}})


@pytest.mark.parametrize(
    "on_disk",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_a_new_rope_wins_in_either_spelling_and_keeps_the_theta(
    write_config: WriteConfig, on_disk: dict[str, object], spelling: str
) -> None:
    override = {spelling: {"rope_type": "linear", "factor": 2.0}}
    config = read_config(write_config(**on_disk), hf_overrides=override)
    assert config.rope_parameters == {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    "on_disk",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
    ],
)
def test_a_new_theta_keeps_the_scaling(write_config: WriteConfig, on_disk: dict[str, object]) -> None:
    config = read_config(write_config(**on_disk), hf_overrides={"rope_theta": 7.0})
    assert config.rope_parameters == {"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0}


def test_one_theta_for_a_rope_per_kind_of_layer_is_refused(write_config: WriteConfig) -> None:
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 5.0}}
    path = write_config(model_type="gemma3_text", rope_theta=None, rope_parameters=rope)
    with pytest.raises(ConfigError, match="override rope_parameters"):
        read_config(path, hf_overrides={"rope_theta": 7.0})


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no config.json; a model folder has one"):
        read_config(tmp_path)
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "config.json").touch()
    with pytest.raises(ModelError, match="did you mean its subfolder inner"):
        read_config(tmp_path)
    with pytest.raises(ModelError, match="no such directory"):
        read_config(tmp_path / "nothing")


def test_an_adapter_is_not_taken_for_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "holds a list")]
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)
    with pytest.raises(ModelError, match=message):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "names no `architectures`"),
        ({"architectures": []}, "names no `architectures`"),
        ({"model_type": None}, "names no `model_type`"),
        ({"model_type": 7}, "names no `model_type`"),
        ({"model_type": "lama"}, r"'lama' is not known to transformers .* Did you mean 'llama'\?"),
        ({"hidden_size": "big"}, "not a valid LlamaConfig: .*'hidden_size' expected int"),
        ({"hidden_size": 65}, "not a valid LlamaConfig: .*not a multiple"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}},
            r"code that comes with the model \(mine.MyConfig\).*trust_remote_code=True",
        ),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused_in_one_line(
    write_config: WriteConfig, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as error:
        read_config(write_config(**changes))
    assert "\n" not in str(error.value)


def test_architectures_may_come_from_an_override(write_config: WriteConfig) -> None:
    path = write_config(architectures=None)
    assert read_config(path, hf_overrides={"architectures": ["X"]}).architectures == ["X"]


def test_the_models_own_code_runs_only_with_trust(
    write_config: WriteConfig, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    path = write_config(model_type="mine", auto_map={"AutoConfig": "mine_code.MyConfig"})
    code = "from transformers import PretrainedConfig\nclass MyConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    (path / "mine_code.py").write_text(code)
    config = read_config(path, trust_remote_code=True)
    assert (type(config).__name__, config.hidden_size) == ("MyConfig", 64)
    (path / "mine_code.py").write_text("raise RuntimeError('broken')")
    with pytest.raises(ModelError, match="own code mine_code.MyConfig cannot be loaded: broken"):
        read_config(path, trust_remote_code=True)


def test_a_known_model_type_needs_no_trust(write_config: WriteConfig) -> None:
    config = read_config(write_config(auto_map={"AutoConfig": "mine.MyConfig"}))
    assert config.model_type == "llama"


def test_generation_defaults_are_a_plain_dict(tmp_path: Path) -> None:
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6}')
    assert read_generation_config(tmp_path) == {"temperature": 0.6}
