"""Names of the interface that are no fields of ours: taken where they say "not used", refused or warned about else."""

from __future__ import annotations

import pytest

import vllm.names
from vllm import BeamSearchParams, EngineArgs, SamplingParams
from vllm.config import UNSUPPORTED, WITHOUT_EFFECT
from vllm.errors import ConfigError


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_missing_feature_is_refused_unless_it_is_off(name: str) -> None:
    for value in UNSUPPORTED[name]:
        EngineArgs(**{name: value})
    with pytest.raises(ConfigError, match=f"{name}='something' is not supported by this version; leave it out"):
        EngineArgs(**{name: "something"})


def test_an_option_without_effect_warns_once_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(vllm.names.logger, "warning", warnings.append)
    for name, reason in WITHOUT_EFFECT.items():
        EngineArgs(**{name: 77})
        EngineArgs(**{name: 77})
        assert warnings == [f"{name}=77 has no effect here: {reason}"]
        warnings.clear()


def test_an_unknown_name_is_a_type_error_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match="EngineArgs has no parameter 'quantisation'. Did you mean 'quantization'?"):
        EngineArgs(quantisation="int8")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="SamplingParams has no parameter 'temprature'. Did you mean 'temperature'?"):
        SamplingParams(temprature=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="BeamSearchParams has no parameter 'width'"):
        BeamSearchParams(width=1)  # type: ignore[call-arg]


def test_sampling_parameters_of_missing_features_are_refused_unless_off() -> None:
    SamplingParams(guided_decoding=None, structured_outputs=None, flat_logprobs=False)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="structured_outputs=.* is not supported"):
        SamplingParams(structured_outputs={"regex": "a+"})  # type: ignore[call-arg]


def test_clients_can_list_the_sampling_parameters() -> None:
    assert {"n", "temperature", "stop", "max_tokens", "logprobs"} <= set(SamplingParams.__annotations__)
