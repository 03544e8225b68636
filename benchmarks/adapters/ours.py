"""This repository's engine."""

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
            **options.get("engine", {}),
        )

    def close(self) -> None:
        if self.llm is not None:
            self.llm.close()
