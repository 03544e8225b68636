"""Decoders that have no family here and whose attention can be handed in: transformers' module, with all rows of a step at once.

    step: a a a b c  ──▶  module(a a a b c)  ──▶  [T, V]
                            └ its first attention, its second, …  ──▶  our kernels, over the paged cache

What each attention needs is found out by calling the module once: what it is given, and which keys a query sees by the
predicate that the module's masks are made of.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from vllm.kv_cache.spec import Full, Window
from vllm.layers.placement import Placement
from vllm.layers.step import Step
from vllm.ops.attention import AttentionOptions
from vllm.ops.linear import linear
from vllm.ops.matrix import DenseMatrix, Matrix

CACHES = ("past_key_values", "cache", "cache_params")
"""What modules call the cache that they are given."""
_PROBE = 8  # tokens of the call by which its attention is found out
_CLOSE = 64  # positions from the first one on at which is looked what a query sees
_numbers = itertools.count()


class Unfit(Exception):
    """Why a module can't be computed in this way."""


class Site(nn.Module):
    """A place where a module attends."""

    def __init__(self, index: int, cache_spec: Full, options: AttentionOptions) -> None:
        super().__init__()
        self.index = index
        self.cache_spec = cache_spec
        self.options = options


class PackedDecoder(nn.Module):
    """A module of transformers that gives the tokens of all rows logits.  -> [T, V]"""

    def __init__(self, module: Any, vocab_size: int, placement: Placement, max_model_len: int) -> None:
        """Raises Unfit; the module then is as it was."""
        super().__init__()
        self.module = module
        self.num_logits = vocab_size
        self.max_model_len = max_model_len
        self.sites = nn.ModuleList()
        self._step: Step | None = None
        self._next = 0
        takes = inspect.signature(module.forward).parameters
        self._cache_name = next((name for name in CACHES if name in takes), CACHES[0])
        self._takes_rows = "logits_to_keep" in takes
        _refuse_moving_frequencies(module.config)
        before = module.config._attn_implementation
        self._register()
        try:
            with self._attending_for(None):
                ids = torch.zeros(_PROBE, dtype=torch.int64, device=placement.device)
                self._call(ids, torch.arange(_PROBE, device=placement.device))
            if not self.sites:
                raise Unfit("it does not attend by transformers' interface")
        except Exception as error:
            module.set_attn_implementation(before)
            raise error if isinstance(error, Unfit) else Unfit(str(error) or type(error).__name__) from error
        if placement.device.type == "cpu":
            _use_our_products(module, placement)

    @torch.inference_mode()
    def forward(self, step: Step) -> Tensor:
        wanted = [
            token
            for row in step.rows.each()
            for token in range(row.first if row.wants_all else row.first + row.count - 1, row.first + row.count)
        ]
        rows = torch.tensor(wanted, dtype=torch.int64, device=step.token_ids.device)
        with self._attending_for(step):
            found = self._call(step.token_ids, step.positions, rows)
        logits = torch.empty(len(step.token_ids), self.num_logits, dtype=torch.float32, device=rows.device)
        logits[rows] = found[:, : self.num_logits].float()
        return logits

    def _call(self, ids: Tensor, positions: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the logits of some of the tokens.  -> [n, V]"""
        options: dict[str, Any] = {self._cache_name: _through()(), "use_cache": True}
        if self._takes_rows and rows is not None:
            options["logits_to_keep"] = rows
        found: Tensor = self.module(input_ids=ids[None], position_ids=positions[None], **options).logits[0]
        return found if self._takes_rows or rows is None else found[rows]

    def _register(self) -> None:
        """Let the module attend by `_attend`, and be given masks that say what they are made of."""
        from transformers import AttentionInterface, AttentionMaskInterface

        name = f"paged_{next(_numbers)}"
        decoder = weakref.ref(self)  # the interface outlives the model, and must not keep its weights

        def attend(*given: Any, **options: Any) -> tuple[Tensor, None]:
            found = decoder()
            assert found is not None, "the module is called by its decoder alone"
            return found._attend(*given, **options)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, _mask)
        self.module.set_attn_implementation(name)

    @contextmanager
    def _attending_for(self, step: Step | None) -> Iterator[None]:
        self._step, self._next = step, 0
        try:
            yield
        finally:
            self._step = None
        if self._next != len(self.sites):
            raise RuntimeError(f"{type(self.module).__name__} attended {self._next} times instead of {len(self.sites)}")

    def _attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Attend as transformers' modules ask for it.  [1, H, T, E], [1, G, T, E], [1, G, T, Ev] -> [1, T, H, Ev]"""
        index, step = self._next, self._step
        self._next += 1
        if step is None:
            self.sites.append(self._site(index, module, key, value, attention_mask, options, query.shape[-1]))
            return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None
        site = cast("Site", self.sites[index])
        q, k, v = (heads[0].transpose(0, 1).contiguous() for heads in (query, key, value))
        plan = step.plans[step.group_of[index]]
        return step.attention.run(q, k, v, step.caches[index], plan, site.options)[None], None

    def _site(
        self, index: int, module: nn.Module, key: Tensor, value: Tensor, mask: Any, given: dict[str, Any], width: int
    ) -> Site:
        if not isinstance(mask, _Mask):
            raise Unfit("an attention makes its mask by itself")
        if given.get("position_bias") is not None:
            raise Unfit("an attention adds a bias to its scores")
        window = _window(mask.predicate, self.max_model_len)
        sinks = next(
            (found for found in (given.get("s_aux"), getattr(module, "sinks", None)) if found is not None), None
        )
        scale = given.get("scaling")
        options = AttentionOptions(
            scale=width**-0.5 if scale is None else float(scale),
            window=window,
            softcap=given.get("softcap") or 0.0,
            sinks=None if sinks is None else sinks.detach().flatten().float(),
        )
        shape = (key.shape[1], key.shape[3], value.shape[3])
        return Site(index, Full(*shape) if window is None else Window(*shape, size=window), options)


def _window(predicate: Callable[..., Any], reach: int) -> int | None:
    """Return how many of the last tokens a query sees, itself included; None: all of them.  Raises Unfit."""
    queries = torch.tensor(sorted({*range(min(_CLOSE, reach)), reach // 2, reach - 1}))[:, None]
    keys = torch.arange(reach)[None]
    seen = torch.as_tensor(predicate(torch.zeros_like(queries), torch.zeros_like(queries), queries, keys))
    seen = seen.expand(len(queries), reach)
    width = int(seen.sum(1).max())
    if not torch.equal(seen, (keys <= queries) & (keys > queries - width)):
        raise Unfit("a query sees other keys than the last ones")
    return None if width == reach else width


class _Mask(Tensor):
    """What a module takes for a mask that is ready, and hands on as it is."""

    predicate: Callable[..., Any]

    @staticmethod
    def of(predicate: Callable[..., Any]) -> _Mask:
        mask: _Mask = torch.zeros(1, 1, 1, 1, dtype=torch.bool).as_subclass(_Mask)
        mask.predicate = predicate
        return mask

    def __getitem__(self, index: Any) -> _Mask:
        return self

    def to(self, *args: Any, **options: Any) -> _Mask:  # type: ignore[override]
        return self


def _mask(*, mask_function: Callable[..., Any], **options: Any) -> _Mask:
    """Make a mask as transformers' modules ask for it."""
    return _Mask.of(mask_function)


@functools.cache
def _through() -> Any:
    """Return the class of caches that keep nothing and give a step's keys and values back; transformers is imported when it is used."""
    from transformers import DynamicCache

    class Through(DynamicCache):
        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int = 0, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            return key_states, value_states

        def get_seq_length(self, *args: Any, **options: Any) -> int:
            return 0

    return Through


def _refuse_moving_frequencies(config: Any) -> None:
    """Raise Unfit where frequencies depend on the longest sequence of a batch."""
    found = str(getattr(config.get_text_config(), "rope_parameters", None))
    for kind in ("dynamic", "longrope"):
        if f"'{kind}'" in found:
            raise Unfit(f"its rope_type {kind!r} depends on the longest sequence of a batch")


def _use_our_products(module: nn.Module, placement: Placement) -> None:
    """Let a module's products with weights be ours, in which a row's result doesn't depend on the rows beside it."""
    for part in module.modules():
        if type(part) is not nn.Linear or part.weight.dtype != placement.dtype:
            continue
        matrix = placement.matrix(part.out_features, part.in_features, bias=part.bias is not None)
        if isinstance(matrix, DenseMatrix):  # it would hold the weights once more
            part.forward = partial(_plain_product, part)  # type: ignore[method-assign]
            continue
        matrix.place(0, part.out_features).put(part.weight.data)
        if part.bias is not None:
            matrix.bias_place(0, part.out_features).put(part.bias.data)
        part.forward = partial(_product, matrix)  # type: ignore[method-assign]


def _product(matrix: Matrix, x: Tensor) -> Tensor:
    return matrix.multiply(x.reshape(-1, x.shape[-1]).contiguous()).unflatten(0, x.shape[:-1])


def _plain_product(part: nn.Linear, x: Tensor) -> Tensor:
    return linear(x.reshape(-1, x.shape[-1]), part.weight, part.bias).unflatten(0, x.shape[:-1])
