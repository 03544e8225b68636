"""Windows are filled, everything is accounted for, and what does not fit is refused by name."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm.errors import ModelError
from vllm.loader.dummy import fill_dummy
from vllm.loader.fill import fill
from vllm.weights import TensorPlace, Window


def window(name: str, target: torch.Tensor, *others: Any, **options: Any) -> Window:
    return Window(name, TensorPlace(target), *others, **options)


def test_the_windows_of_a_fused_parameter_are_filled_side_by_side() -> None:
    q, k = torch.randn(4, 8), torch.randn(2, 8)
    qkv = torch.empty(6, 8, dtype=torch.bfloat16)
    fill([window("q", qkv[:4]), window("k", qkv[4:])], [("k", k), ("q", q)], where="x")
    assert torch.equal(qkv, torch.cat([q, k]).to(torch.bfloat16))


def test_a_tensor_is_cut_into_several_windows() -> None:
    fused, q, k = torch.randn(8, 6), torch.empty(4, 8), torch.empty(2, 8)
    windows = [window("qk", q, lambda t: t.T[:4]), window("qk", k, lambda t: t.T[4:])]
    fill(windows, [("qk", fused)], where="x")
    assert torch.equal(torch.cat([q, k]), fused.T)


def test_a_window_may_be_columns_of_a_parameter() -> None:
    whole = torch.empty(4, 6)
    left, right = torch.randn(4, 3), torch.randn(4, 3)
    fill([window("l", whole[:, :3]), window("r", whole[:, 3:])], [("l", left), ("r", right)], where="x")
    assert torch.equal(whole, torch.cat([left, right], dim=1))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_first_berts_call_the_weights_of_a_norm_otherwise(prefix: str) -> None:
    weight, bias, other = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    windows = [window("bert.n.weight", weight), window("bert.n.bias", bias), window("bert.gamma", other)]
    stored = [("n.gamma", torch.ones(2)), ("n.beta", torch.full((2,), 2.0)), ("gamma", torch.full((2,), 3.0))]
    fill(windows, [(prefix + name, tensor) for name, tensor in stored], where="x", prefixes=["bert."])
    assert (weight == 1).all() and (bias == 2).all() and (other == 3).all()


def test_both_names_of_one_weight_are_one_too_many() -> None:
    stored = [("n.gamma", torch.ones(2)), ("n.weight", torch.ones(2))]
    with pytest.raises(ModelError, match=r"n.weight comes twice"):
        fill([window("n.weight", torch.zeros(2))], stored, where="x")


def test_a_scalar_and_an_empty_tensor_are_filled() -> None:
    scalar, empty = torch.zeros(()), torch.empty(0, 3)
    fill([window("s", scalar), window("e", empty)], [("s", torch.tensor(2.0)), ("e", torch.empty(0, 3))], where="x")
    assert scalar == 2.0


def test_a_parameter_that_wants_gradients_can_be_filled() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    fill([window("a", parameter)], [("a", torch.ones(3))], where="x")
    assert parameter.sum() == 3 and parameter.grad_fn is None


def test_missing_and_unknown_names_are_listed_together() -> None:
    windows = [window(f"w{i}", torch.zeros(1)) for i in range(7)]
    with pytest.raises(ModelError) as error:
        fill(windows, [("w0", torch.zeros(1)), ("b", torch.zeros(1))], where="folder")
    message = str(error.value)
    assert message.startswith("folder: ")
    assert "6 weights of the model are not in it: w1, w2, w3, w4, w5 and 1 more" in message
    assert "1 names of it are unknown to the model: b" in message
    assert "\n" not in message


def test_an_optional_window_keeps_its_value_when_the_checkpoint_lacks_it() -> None:
    target = torch.full((2,), 5.0)
    fill([window("a", target, optional=True)], [], where="x")
    assert target.tolist() == [5.0, 5.0]


def test_a_name_wanted_by_an_optional_and_a_required_window_is_required() -> None:
    windows = [window("a", torch.zeros(1), optional=True), window("a", torch.zeros(1))]
    with pytest.raises(ModelError, match="not in it: a"):
        fill(windows, [], where="x")


def test_ignored_names_are_explained_by_patterns() -> None:
    fill([], [("h.0.attn.bias", torch.ones(1)), ("lm_head.weight", torch.ones(1))], ["*.attn.bias", "lm_*"], where="x")
    with pytest.raises(ModelError, match="unknown to the model: h.0.attn.bias"):
        fill([], [("h.0.attn.bias", torch.ones(1))], ["*.attn.masked_bias"], where="x")


def test_a_checkpoint_of_the_base_model_loads_through_a_prefix() -> None:
    target = torch.zeros(2)
    tensors = [("wte.weight", torch.ones(2)), ("h.0.attn.bias", torch.ones(1))]
    fill(
        [window("transformer.wte.weight", target)],
        tensors,
        ["transformer.h.*.attn.bias"],
        where="x",
        prefixes=["model.", "transformer."],
    )
    assert target.tolist() == [1.0, 1.0]


def test_without_the_prefix_the_same_checkpoint_is_refused() -> None:
    with pytest.raises(ModelError, match="unknown to the model: wte.weight"):
        fill([window("transformer.wte.weight", torch.zeros(2))], [("wte.weight", torch.ones(2))], where="x")


def test_a_name_is_taken_as_it_is_before_a_prefix_is_tried() -> None:
    plain, prefixed = torch.zeros(1), torch.zeros(1)
    windows = [window("a", plain), window("model.a", prefixed)]
    tensors = [("a", torch.tensor([1.0])), ("model.a", torch.tensor([2.0]))]
    fill(windows, tensors, where="x", prefixes=["model."])
    assert (plain.item(), prefixed.item()) == (1.0, 2.0)


@pytest.mark.parametrize("second", ["a", "model.a"])
def test_a_name_that_comes_twice_is_refused(second: str) -> None:
    tensors = [("model.a", torch.zeros(1)), (second, torch.zeros(1))]
    with pytest.raises(ModelError, match="comes twice"):
        fill([window("model.a", torch.zeros(1))], tensors, where="x", prefixes=["model."])


def test_a_wrong_shape_is_named_with_both_shapes() -> None:
    with pytest.raises(ModelError, match=r"a has the shape \[1, 4\]; the model expects \[2, 4\]"):
        fill([window("a", torch.zeros(2, 4))], [("a", torch.zeros(1, 4))], where="x")


def test_a_wrong_shape_after_cutting_is_named_with_all_three() -> None:
    one = window("a", torch.zeros(2, 4), lambda t: t[:2])
    with pytest.raises(ModelError, match=r"\[5, 3\], \[2, 3\] after cutting; the model expects \[2, 4\]"):
        fill([one], [("a", torch.zeros(5, 3))], where="x")


def test_a_tensor_that_cannot_be_cut_is_refused_by_name() -> None:
    one = window("a", torch.zeros(2, 4), lambda t: t.view(2, 2, 4)[0])
    with pytest.raises(ModelError, match=r"a has the shape \[7\], which cannot be cut"):
        fill([one], [("a", torch.zeros(7))], where="x")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("position", [0, 2_499_999])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float, dtype: torch.dtype, position: int) -> None:
    tensor = torch.ones(2_500_000, dtype=dtype)
    tensor[position] = bad
    with pytest.raises(ModelError, match="model.norm holds NaN or infinite values"):
        fill([window("model.norm", torch.empty(2_500_000, dtype=dtype))], [("model.norm", tensor)], where="x")


def test_nan_in_a_column_window_is_found() -> None:
    whole = torch.zeros(3000, 1000)
    tensor = torch.zeros(3000, 500)
    tensor[2999, 499] = float("nan")
    with pytest.raises(ModelError, match="holds NaN"):
        fill([window("a", whole[:, 500:])], [("a", tensor)], where="x")


def test_large_finite_values_are_taken() -> None:
    target = torch.empty(1000)
    fill([window("a", target)], [("a", torch.full((1000,), 3e38))], where="x")
    assert target.min() == torch.tensor(3e38)


def test_values_beyond_the_range_of_the_model_dtype_are_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match=r"beyond the range of torch.float16; use dtype='bfloat16'"):
        fill([window("a", torch.empty(2, dtype=torch.float16))], [("a", torch.tensor([1.0, 1e6]))], where="x")


def test_nan_in_a_part_that_nobody_takes_does_no_harm() -> None:
    tensor = torch.tensor([1.0, float("nan")])
    fill([window("a", torch.zeros(1), lambda t: t[:1])], [("a", tensor), ("b", tensor)], ["b"], where="x")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match="quantized checkpoints are not supported"):
        fill([window("a", torch.zeros(2))], [("a", torch.zeros(2).to(dtype))], where="x")


def test_tensors_are_taken_one_at_a_time_and_let_go() -> None:
    alive: list[weakref.ref[Tensor]] = []
    most_alive = 0

    def stream() -> Iterator[tuple[str, Tensor]]:
        nonlocal most_alive
        for number in range(20):
            tensor = torch.full((3,), float(number))
            alive.append(weakref.ref(tensor))
            most_alive = max(most_alive, sum(ref() is not None for ref in alive))
            yield f"w{number}", tensor
            del tensor

    targets = torch.zeros(20, 3)
    fill([window(f"w{i}", targets[i]) for i in range(20)], stream(), where="x")
    assert targets[:, 0].tolist() == [float(i) for i in range(20)]
    assert most_alive <= 2  # the one in the hand, and the next one being made


def test_dummy_weights_are_small_seeded_and_independent_of_order() -> None:
    def filled(seed: int, backwards: bool = False) -> list[Tensor]:
        targets = [torch.empty(50, 40), torch.empty(50, 40, dtype=torch.bfloat16), torch.ones(3, dtype=torch.int64)]
        windows = [window(name, target) for name, target in zip("abc", targets, strict=True)]
        fill_dummy(reversed(windows) if backwards else windows, seed=seed)
        return targets

    one, same, other = filled(1), filled(1, backwards=True), filled(2)
    assert all(torch.equal(x, y) for x, y in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1].float())
    assert 0.01 < one[0].std() < 0.03 and one[1].isfinite().all() and not one[2].any()
