"""OpenVINO GenAI's continuous batching, reading GGUF files itself, with its prefix cache switched on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .protocol import Asked, Clock

BLOCK_TOKENS = 32  # of its cache on processors


class Engine:
    def __init__(self) -> None:
        self.pipeline: Any = None
        self.num_requests = 0

    def load(self, model: str, options: dict[str, Any]) -> None:
        import openvino_genai

        schedule = openvino_genai.SchedulerConfig()
        schedule.enable_prefix_caching = True
        schedule.cache_size = 0
        schedule.num_kv_blocks = options["kv_tokens"] // BLOCK_TOKENS
        schedule.max_num_seqs = options["max_requests"]
        for name, value in options.get("engine", {}).items():
            setattr(schedule, name, value)
        properties = {"INFERENCE_NUM_THREADS": options["threads"]}
        self.pipeline = openvino_genai.ContinuousBatchingPipeline(model, schedule, "CPU", properties)

    def prepare(self, requests: Sequence[Asked]) -> None:
        """Nothing helps."""

    def run(self, requests: Sequence[Asked]) -> Clock:
        import numpy as np
        import openvino

        pending = {}
        clock = Clock(len(requests))
        for index, (prompt, num_output) in enumerate(requests):
            ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
            pending[index] = self.pipeline.add_request(self.num_requests, ids, self._greedy(num_output))
            self.num_requests += 1
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
            for index, handle in pending.items():
                if handle.can_read():
                    for output in handle.read().values():
                        clock.saw(index, list(output.generated_ids))
        return clock

    def close(self) -> None:
        self.pipeline = None

    def _greedy(self, num_output: int) -> Any:
        import openvino_genai

        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.ignore_eos = True
        config.max_new_tokens = num_output
        return config
