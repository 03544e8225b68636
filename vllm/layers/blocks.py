"""The shapes of a layer: where the norms stand around attention and feed-forward, and how they are joined.

What a branch is added to is given to it as its `residual`, so that its last product can add it on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from vllm.layers.linear import Linear
from vllm.layers.norm import RmsNorm
from vllm.layers.step import Step


class PreNorm(nn.Module):
    """Norm, then branch, then add: most models."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.before_attention, self.before_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.attention(self.before_attention(x), step, x)
        return self.ffn(self.before_ffn(x), x)


class PreNormCross(nn.Module):
    """Norm, branch, add, with attention to a source between the other two: t5, mbart, pegasus, whisper."""

    def __init__(
        self, attention: nn.Module, cross: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn = attention, cross, ffn
        self.before_attention, self.before_cross, self.before_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.attention(self.before_attention(x), step, x)
        x = self.cross(self.before_cross(x), step, x)
        return self.ffn(self.before_ffn(x), x)


class PostNormCross(nn.Module):
    """Branch, add, norm, with attention to a source between the other two: bart, marian."""

    def __init__(
        self, attention: nn.Module, cross: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.attention, self.cross, self.ffn = attention, cross, ffn
        self.after_attention, self.after_cross, self.after_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.after_attention(self.attention(x, step, x))
        x = self.after_cross(self.cross(x, step, x))
        return self.after_ffn(self.ffn(x, x))


class Single(nn.Module):
    """Norm, then one branch, then add: mamba."""

    def __init__(self, mixer: nn.Module, norms: tuple[nn.Module]) -> None:
        super().__init__()
        self.mixer = mixer
        (self.before,) = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y: Tensor = self.mixer(self.before(x), step, x)
        return y


class OnNorm(nn.Module):
    """Norm, then branch, then add to what the norm has made, weighted: minimax."""

    def __init__(
        self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module], shares: tuple[float, float]
    ) -> None:
        """`shares` are what the norms' results are multiplied with."""
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.before_attention, self.before_ffn = norms
        self.shares = shares

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.before_attention(x)
        x = self.before_ffn(self.attention(x, step, x * self.shares[0]))
        y: Tensor = self.ffn(x, x * self.shares[1])
        return y


class FeedForward(nn.Module):
    """Norm, then feed-forward, then add: nemotron_h's layers without a mixer."""

    def __init__(self, ffn: nn.Module, norms: tuple[nn.Module]) -> None:
        super().__init__()
        self.ffn = ffn
        (self.before,) = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y: Tensor = self.ffn(self.before(x), x)
        return y


class Normed(nn.Module):
    """A block, and a norm of all that comes out of it: models that pass their layers several times.  [T, D] -> [T, D]"""

    def __init__(self, block: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.norm = norm

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y: Tensor = self.norm(self.block(x, step))
        return y


class Together(nn.Module):
    """Mixers that read the same, and whose results are added: falcon_h1.  [T, D] -> [T, D]"""

    def __init__(self, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList(mixers)

    def forward(self, x: Tensor, step: Step, residual: Tensor | None = None) -> Tensor:
        for mixer in self.mixers:
            residual = mixer(x, step, residual)
        assert residual is not None
        return residual


class PostNorm(nn.Module):
    """Branch, then add, then norm: the first transformers, opt-350m."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.after_attention, self.after_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.after_attention(self.attention(x, step, x))
        return self.after_ffn(self.ffn(x, x))


class AfterBranch(nn.Module):
    """Branch, then norm, then add: olmo2."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.after_attention, self.after_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.after_attention(self.attention(x, step), x)
        return self.after_ffn(self.ffn(x), x)


class Sandwich(nn.Module):
    """Norm, then branch, then norm, then add: gemma2."""

    def __init__(
        self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module, nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.before_attention, self.after_attention, self.before_ffn, self.after_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.after_attention(self.attention(self.before_attention(x), step), x)
        return self.after_ffn(self.ffn(self.before_ffn(x)), x)


class Beside(nn.Module):
    """A block as most are, and experts that read what it reads, under a norm of their own: arctic."""

    def __init__(self, attention: nn.Module, ffns: nn.ModuleList, norms: tuple[nn.Module, ...]) -> None:
        """`ffns`: the feed-forward, then the experts."""
        super().__init__()
        self.attention = attention
        self.ffn, self.experts = ffns
        self.before_attention, self.before_ffn, self.before_experts = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        y = self.attention(self.before_attention(x), step, x)
        return self.experts(self.before_experts(x), self.ffn(self.before_ffn(y), y))


class Twice(nn.Module):
    """Two blocks, and experts that read what the first one's feed-forward reads, added behind the second: longcat."""

    def __init__(
        self, attentions: nn.ModuleList, ffns: nn.ModuleList, experts: nn.Module, norms: Sequence[nn.Module]
    ) -> None:
        """`norms`: before attention and feed-forward, of the first block, then of the second."""
        super().__init__()
        self.attentions, self.ffns, self.experts = attentions, ffns, experts
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.attentions[0](self.norms[0](x), step, x)
        read = self.norms[1](x)
        x = self.ffns[0](read, x)
        x = self.attentions[1](self.norms[2](x), step, x)
        y: Tensor = self.ffns[1](self.norms[3](x), self.experts(read, x))
        return y


class SandwichBeside(nn.Module):
    """A sandwich, and experts beside its feed-forward, between norms of their own; all of it is normalised too: gemma 4."""

    def __init__(self, attention: nn.Module, ffns: nn.ModuleList, norms: tuple[nn.Module, ...]) -> None:
        """`ffns`: the feed-forward, then the experts, which are chosen by what comes into this part."""
        super().__init__()
        self.attention = attention
        self.ffn, self.experts = ffns
        self.before_attention, self.after_attention, self.before_ffn, self.after_ffn = norms[:4]
        self.before_experts, self.after_experts, self.after = norms[4:]

    def forward(self, x: Tensor, step: Step) -> Tensor:
        x = self.after_attention(self.attention(self.before_attention(x), step), x)
        y = self.after_ffn(self.ffn(self.before_ffn(x)))
        y = self.after_experts(self.experts(self.before_experts(x), x), y)
        return cast("Tensor", self.after(y, x))


class Parallel(nn.Module):
    """Both branches read the same input, under norms of their own (gpt-neox) or under one (phi)."""

    def __init__(self, attention: nn.Module, ffn: nn.Module, norms: tuple[nn.Module, nn.Module]) -> None:
        super().__init__()
        self.attention, self.ffn = attention, ffn
        self.before_attention, self.before_ffn = norms

    def forward(self, x: Tensor, step: Step) -> Tensor:
        return self.ffn(self.before_ffn(x), self.attention(self.before_attention(x), step, x))


def announce_norms(blocks: Sequence[nn.Module], last: nn.Module) -> None:
    """Tell the last products of branches which norm reads what they add to, so that it can be made with the sum.

    `last` is the norm behind the blocks.
    """
    followers = [*(block.before_attention if isinstance(block, PreNorm) else None for block in blocks[1:]), last]
    for block, follower in zip(blocks, followers, strict=True):
        if isinstance(block, PreNorm):
            _announce(getattr(block.attention, "out", None), block.before_ffn)
            _announce(getattr(block.ffn, "down", None), follower)


def spend_sums(blocks: Sequence[nn.Module]) -> None:
    """Let the last products of branches write over what they are added to, in blocks after which nobody reads it.

    What comes into the first one is left alone: it may be read again, or stand in the same place in the next step.
    """
    for index, block in enumerate(blocks):
        if isinstance(block, PreNorm):
            first = () if index == 0 else (getattr(block.attention, "out", None),)
            for product in (*first, getattr(block.ffn, "down", None)):
                if isinstance(product, Linear):
                    product.matrix.spends_residual = True


def _announce(product: object, norm: nn.Module | None) -> None:
    if isinstance(product, Linear) and isinstance(norm, RmsNorm):
        product.reader = norm.next
