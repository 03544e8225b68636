"""What only some requests ask for: callables, allowed tokens, biases, bad words, a least number of tokens.

These are kept per slot and applied row by row, in the order in which `Edits.apply` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm.errors import RequestError
from vllm.sampling.history import History
from vllm.sampling.limits import num_arguments, processor_name
from vllm.sampling_params import LogitsProcessor, SamplingParams

_BANNED = float("-inf")


@dataclass(frozen=True, slots=True)
class Edits:
    """The changes one request makes to its logits."""

    processors: tuple[tuple[LogitsProcessor, int], ...]
    """Each with its number of arguments."""
    allowed: Tensor | None
    bias_ids: Tensor | None
    bias: Tensor | None
    phrases: tuple[tuple[list[int], int], ...]
    """Bad words: where the output ends with the first, the second is banned."""
    end_ids: Tensor
    """Tokens that would end the output: banned before `min_tokens`."""
    min_tokens: int

    @property
    def always(self) -> bool:
        """Whether there is something to do beside `min_tokens`."""
        return bool(self.processors or self.phrases or self.allowed is not None or self.bias is not None)

    def apply(self, logits: Tensor, history: History, row: int) -> None:
        """Change one row's logits in place.  [V]

        Raises RequestError if a processor fails.
        """
        for processor, arguments in self.processors:
            _process(processor, arguments, logits, history, row)
        if self.allowed is not None:
            kept = logits[self.allowed]
            logits.fill_(_BANNED)
            logits[self.allowed] = kept
        if self.bias_ids is not None and self.bias is not None:
            logits[self.bias_ids] += self.bias
        if self.phrases:
            logits[self._banned(history, row, logits.device)] = _BANNED
        if history.num_output[row] < self.min_tokens:
            logits[self.end_ids] = _BANNED

    def _banned(self, history: History, row: int, device: torch.device) -> Tensor:
        longest = max(len(prefix) for prefix, _ in self.phrases)
        tail = history.output(row, last=longest)
        banned = [last for prefix, last in self.phrases if not prefix or tail[-len(prefix) :] == prefix]
        return torch.tensor(banned, dtype=torch.int64, device=device)


def make_edits(
    params: SamplingParams,
    end_ids: tuple[int, ...],
    bad_words_ids: list[list[int]],
    vocab_size: int,
    device: torch.device | str,
) -> Edits | None:
    """Collect what `params` ask for; None if that is nothing.  `end_ids` are the model's own end tokens."""

    def index(ids: list[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=device)

    bias = params.logit_bias
    ends = {token for token in (*end_ids, *(params.stop_token_ids or ())) if token < vocab_size}
    edits = Edits(
        processors=tuple((p, num_arguments(p)) for p in params.logits_processors or ()),
        allowed=index(sorted(set(params.allowed_token_ids))) if params.allowed_token_ids else None,
        bias_ids=index(list(bias)) if bias else None,
        bias=torch.tensor(list(bias.values()), dtype=torch.float32, device=device) if bias else None,
        phrases=tuple((words[:-1], words[-1]) for words in bad_words_ids if words and words[-1] < vocab_size),
        end_ids=index(sorted(ends)),
        min_tokens=params.min_tokens if ends else 0,
    )
    return edits if edits.always or edits.min_tokens else None


def _process(processor: LogitsProcessor, arguments: int, logits: Tensor, history: History, row: int) -> None:
    """Replace one row's logits by what a processor makes of them."""
    prompt = [history.prompt(row)] if arguments == 3 else []
    try:
        result = processor(*prompt, history.output(row), logits.clone())
    except Exception as error:  # it is the user's code: whatever it raises is this request's failure alone
        raise RequestError(
            f"logits processor {processor_name(processor)} raised {type(error).__name__}: {error}", "logits_processors"
        ) from error
    if not isinstance(result, Tensor) or result.shape != logits.shape:
        got = f"shape {tuple(result.shape)}" if isinstance(result, Tensor) else f"{type(result).__name__}"
        raise RequestError(
            f"logits processor {processor_name(processor)} must return a tensor of shape {tuple(logits.shape)}, got {got}",
            "logits_processors",
        )
    try:
        logits.copy_(result)
    except Exception as error:  # a tensor that is sparse, or has no data
        raise RequestError(
            f"logits processor {processor_name(processor)} returned a tensor that can't be read: {error}",
            "logits_processors",
        ) from error
