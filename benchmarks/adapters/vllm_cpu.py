"""vLLM's build for processors.  Its threads are bound by VLLM_CPU_OMP_THREADS_BIND, which the engine table sets: left
alone it computes on one core of two."""

from __future__ import annotations

from typing import Any

from .stepping import SteppingEngine


class Engine(SteppingEngine):
    def load(self, model: str, options: dict[str, Any]) -> None:
        from vllm import LLM

        self.llm = LLM(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=options["max_len"],
            kv_cache_memory_bytes=options["kv_bytes"],
            enable_prefix_caching=True,
            **options.get("engine", {}),
        )

    def close(self) -> None:
        self.llm = None
