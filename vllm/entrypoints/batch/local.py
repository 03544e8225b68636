"""The lines of a batch, answered by an engine in this process.

Requests are fed as fast as the engine takes them.  If a step fails, those that were in it run again one by one: the
guilty line gets the error, the others their answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from vllm.engine.llm_engine import LLMEngine
from vllm.entrypoints.batch.bodies import body_of, prompt_and_params
from vllm.entrypoints.batch.lines import Answer, Line
from vllm.errors import VllmError
from vllm.messages import EngineRequest


class Local:
    """An engine that answers lines."""

    def __init__(self, engine: LLMEngine, name: str) -> None:
        """`name` is what answers call the model."""
        self.engine = engine
        self.name = name
        self._renderer = engine.chat_renderer()
        self._most = 2 * engine.config.scheduler.max_num_seqs  # in the engine at a time; more would only wait there

    def answer(self, lines: list[Line]) -> Iterator[Answer]:
        """Give each line's answer as it comes."""
        waiting = deque(enumerate(lines))
        running: dict[str, Line] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._most:
                    index, line = waiting.popleft()
                    request = self._prepare(line, str(index))
                    if isinstance(request, Answer):
                        yield request
                    else:
                        self.engine.add(request)
                        running[request.id] = line
                try:
                    outputs = self.engine.step() if running else []
                except Exception:  # whatever it is, it is one line's fault until proven otherwise
                    lost, running = running, {}
                    self.engine.abort_request(list(lost))
                    yield from self._one_by_one(lost)
                    continue
                for output in outputs:
                    if output.finished:
                        yield self._answer(running.pop(output.request_id), output)
        finally:
            self.engine.abort_request(list(running))

    def _one_by_one(self, lost: dict[str, Line]) -> Iterator[Answer]:
        for name, line in lost.items():
            request = self._prepare(line, name)
            if isinstance(request, Answer):
                yield request
                continue
            try:
                self.engine.add(request)
                outputs: list[Any] = []
                while not outputs or not outputs[-1].finished:
                    outputs = self.engine.step()
                yield self._answer(line, outputs[-1])
            except Exception as error:
                self.engine.abort_request(name)
                yield line.refused(f"the engine failed: {type(error).__name__}: {error}", 500)

    def _prepare(self, line: Line, name: str) -> EngineRequest | Answer:
        if line.error is not None:
            return line.refused(line.error)
        try:
            prompt, params = prompt_and_params(line, self._renderer, self.engine.model_config.default_sampling)
            (request,) = self.engine.preparer.prepare([prompt], params, request_ids=[name])
        except (VllmError, TypeError) as error:
            return line.refused(str(error), 400, getattr(error, "param", None))
        return request

    def _answer(self, line: Line, output: Any) -> Answer:
        failed = next((one for one in output.outputs if one.finish_reason == "error"), None)
        if failed is not None:
            return line.refused(str(failed.stop_reason), 500)
        return Answer(line.custom_id, 200, body_of(line, output, line.body.get("model") or self.name))
