"""llama.cpp through the C interface that llama-cpp-python wraps, fed as its own server feeds it: in every batch one
token of each sequence that is being continued, and as many tokens of waiting prompts as fit beside them.

Its server computes a common beginning once per sequence.  The library can copy it, so it is computed once here and
copied: its user would have to know of it, but the comparison should not turn on that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .protocol import Asked, Clock

BATCH_TOKENS = 2048  # its default for n_batch
WARM_TOKENS = 512


class Engine:
    def __init__(self) -> None:
        self.model: Any = None
        self.single: Any = None  # one sequence with the whole cache
        self.many: Any = None  # as many sequences as a workload has, each with a cache as long as it needs
        self.batch: Any = None

    def load(self, model: str, options: dict[str, Any]) -> None:
        import llama_cpp

        llama_cpp.llama_backend_init()
        self.threads = options["threads"]
        self.model = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load {model}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.single = self._context(1, options["kv_tokens"])

    def prepare(self, requests: Sequence[Asked]) -> None:
        import llama_cpp

        self._drop_many()
        if len(requests) > 1:
            self.many = self._context(len(requests), max(len(prompt) + count for prompt, count in requests))
            prompt = requests[0][0][:WARM_TOKENS]
            self._decode([(0, position, token, False) for position, token in enumerate(prompt)])
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._chosen), False)

    def run(self, requests: Sequence[Asked]) -> Clock:
        clock = Clock(len(requests))
        known = [list(prompt) for prompt, _ in requests]
        computed = [self._share_prefix(known)] * len(requests)
        ends = [len(prompt) + count for prompt, count in requests]
        while running := [index for index, tokens in enumerate(known) if len(tokens) < ends[index]]:
            entries: list[tuple[int, int, int, bool]] = []
            for index in sorted(running, key=lambda each: len(known[each]) - computed[each] > 1):
                count = min(len(known[index]) - computed[index], BATCH_TOKENS - len(entries))
                for position in range(computed[index], computed[index] + count):
                    entries.append((index, position, known[index][position], position == len(known[index]) - 1))
                computed[index] += count
            for index, token in self._decode(entries):
                known[index].append(token)
                clock.saw(index, [token])
        return clock

    def close(self) -> None:
        import llama_cpp

        self._drop_many()
        if self.model:
            llama_cpp.llama_free(self.single)
            llama_cpp.llama_free_model(self.model)
            self.model = None

    @property
    def _chosen(self) -> Any:
        return self.many or self.single

    def _context(self, num_sequences: int, length: int) -> Any:
        import llama_cpp

        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * -(-length // 256) * 256
        params.n_batch = BATCH_TOKENS
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = self.threads
        context = llama_cpp.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context of {num_sequences} sequences of {length} tokens")
        return context

    def _drop_many(self) -> None:
        import llama_cpp

        if self.many:
            llama_cpp.llama_free(self.many)
            self.many = None

    def _share_prefix(self, prompts: list[list[int]]) -> int:
        """Compute the beginning that all prompts have in common and copy it; return its length."""
        import llama_cpp

        if len(prompts) == 1:
            return 0
        shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
        if shared <= 0:
            return 0
        self._decode([(0, position, prompts[0][position], False) for position in range(shared)])
        memory = llama_cpp.llama_get_memory(self._chosen)
        for sequence in range(1, len(prompts)):
            llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        return shared

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """Compute (sequence, position, token, wanted); return the most likely next token of each that is wanted."""
        import llama_cpp
        import numpy as np

        batch = self.batch
        batch.n_tokens = len(entries)
        for place, (sequence, position, token, wanted) in enumerate(entries):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wanted
        if code := llama_cpp.llama_decode(self._chosen, batch):
            raise RuntimeError(f"llama_decode returned {code} for a batch of {len(entries)} tokens")
        found = []
        for place, (sequence, _, _, wanted) in enumerate(entries):
            if wanted:
                logits = llama_cpp.llama_get_logits_ith(self._chosen, place)
                found.append((sequence, int(np.argmax(np.ctypeslib.as_array(logits, (self.vocab_size,))))))
        return found
