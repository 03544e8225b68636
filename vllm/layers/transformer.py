"""A stack of blocks with an input and a head: a decoder that generates, a decoder or an encoder that pools."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from vllm.kv_cache.spec import CacheSpec, Scratch
from vllm.layers.cross import CrossAttention, Encoder
from vllm.layers.embedding import Head, Sum
from vllm.layers.media import Attended, Deepened, MediaInput, Seeing
from vllm.layers.pooler import Pooler
from vllm.layers.step import Step
from vllm.ops.matrix import Matrix
from vllm.weights import Window


@runtime_checkable
class HasWindows(Protocol):
    """A module that holds weights itself."""

    def windows(self) -> Iterator[Window]:
        """Yield a window for each of the checkpoint's tensors that belongs into this module."""


@runtime_checkable
class HasCache(Protocol):
    """A module that keeps something of the tokens it has seen."""

    index: int
    """Its place among these, in call order"""
    cache_spec: CacheSpec


@runtime_checkable
class Remembers(Protocol):
    """An entry that keeps what it knows of a sequence by itself."""

    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes that it keeps of a sequence of so many tokens."""


@runtime_checkable
class Complete(Protocol):
    """An entry that is a whole model by itself: its weights are there, and what it makes of tokens is logits."""

    num_logits: int


class Transformer(nn.Module):
    """Input, blocks, norm and head.

    What the head is decides what the model is for: with a `Head` it generates, with a `Pooler` it embeds or classifies.
    """

    def __init__(
        self,
        entry: nn.Module,
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        head: Head | Pooler,
        *,
        ignored_names: tuple[str, ...],
        base_prefix: str,
        encoder: Encoder | None = None,
    ) -> None:
        """`entry` turns a step into the first hidden state.  `ignored_names`: shell-style patterns of checkpoint names
        that need no place here.  `base_prefix`: how the names begin in a checkpoint of the whole model and not in one
        of the bare model, without its head.  `encoder`: what reads the sources that its layers attend to."""
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.head = head
        self.ignored_names = ignored_names
        self.base_prefix = base_prefix
        self.encoder = encoder
        self._crossed = [module for module in self.blocks.modules() if isinstance(module, CrossAttention)]
        self.seeing: Seeing | None = None
        """What it sees or hears with"""
        self.reads: MediaInput | None = None
        """Where what it sees or hears comes in"""

    def forward(self, step: Step) -> Tensor:
        """Return the hidden state of every token of the step.  -> [T, D]"""
        x = self.entry(step)
        for block in self.blocks:
            x = block(x, step)
        return self.norm(x)

    def see(self, seeing: Seeing) -> None:
        """Have it read what a tower makes of media, beside texts."""
        self.seeing = seeing
        self.ignored_names += ("tower.*",)  # the tower has read them itself
        if isinstance(seeing.tower, Attended):
            return
        if isinstance(self.entry, Sum):  # what is added to tokens for their positions is added to media too
            self.reads = self.entry.parts[0] = MediaInput(self.entry.parts[0], seeing.num_deep)
        else:
            self.reads = self.entry = MediaInput(self.entry, seeing.num_deep)
        for index in range(seeing.num_deep):
            self.blocks[index] = Deepened(self.blocks[index], self.reads, index)

    @property
    def cache_specs(self) -> tuple[CacheSpec, ...]:
        """What memory the layers that have a cache need, in call order."""
        return _cache_specs(self.entry, self.blocks)

    @property
    def encoder_cache_specs(self) -> tuple[CacheSpec, ...]:
        """What memory the layers of its encoder need."""
        return () if self.encoder is None else _cache_specs(self.encoder.blocks)

    @property
    def is_complete(self) -> bool:
        """Whether its entry is a whole model, that is not made of our layers."""
        return isinstance(self.entry, Complete)

    @property
    def remembers(self) -> bool:
        """Whether it keeps what it knows of a sequence by itself, by slot."""
        return isinstance(self.entry, Remembers)

    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes that it keeps by itself of a sequence of so many tokens, where it remembers."""
        assert isinstance(self.entry, Remembers), "its layers have caches, which say what they need"
        return self.entry.sequence_bytes(num_tokens)

    @property
    def whole_prompts(self) -> bool:
        """Whether a prompt must be computed in one step: tokens see those behind them, or nothing keeps them."""
        specs = self.cache_specs
        if self.remembers:
            return False
        return not specs or any(isinstance(spec, Scratch) for spec in specs)

    def read(self, source: Tensor, step: Step) -> None:
        """Keep what its layers need of what the encoder made, where the step's plans say.  [T, D]"""
        for attention in self._crossed:
            attention.read(source, step)

    @property
    def num_bytes(self) -> int:
        """The memory that the weights take, or will take."""
        matrices = [module for module in self.modules() if isinstance(module, Matrix)]
        owned = {id(parameter) for matrix in matrices for parameter in matrix.parameters()}
        others = sum(parameter.nbytes for parameter in self.parameters() if id(parameter) not in owned)
        return sum(matrix.num_bytes for matrix in matrices) + others

    def windows(self) -> Iterator[Window]:
        """Yield a window for each of the checkpoint's tensors that belongs into the model."""
        for module in self.modules():
            if module is not self and isinstance(module, HasWindows):
                yield from module.windows()


def _cache_specs(*parts: nn.Module) -> tuple[CacheSpec, ...]:
    layers = [module for part in parts for module in part.modules() if isinstance(module, HasCache)]
    return tuple(layer.cache_spec for layer in sorted(layers, key=lambda layer: layer.index))
