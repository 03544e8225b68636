"""A scheduler, a toy worker and a loop that drives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from vllm.config import SchedulerConfig
from vllm.kv_cache.cache import KVCache
from vllm.kv_cache.spec import CacheGroup, CacheSpec, Full
from vllm.messages import Batch, EngineRequest, Event, Media, StepOutput
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import BeamSearchParams, SamplingParams
from vllm.scheduler.scheduler import Scheduler

from .fake_worker import FakeWorker

FULL = Full(kv_heads=1, head_dim=1, value_dim=1)


class Toy:
    """A scheduler over a toy worker; `check()` runs after every step."""

    def __init__(
        self,
        num_blocks: int | list[int] = 64,
        *,
        block_size: int = 4,
        specs: tuple[CacheSpec, ...] = (FULL,),
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 64,
        prefix_caching: bool = True,
        chunked_prefill: bool = True,
        policy: str = "fcfs",
        depth: int = 1,
        whole_media: bool = False,
        source_tokens: int | None = None,
    ) -> None:
        blocks = [num_blocks] * len(specs) if isinstance(num_blocks, int) else num_blocks
        groups = [CacheGroup(spec, (layer,)) for layer, spec in enumerate(specs)]
        self.cache = KVCache(groups, blocks, block_size, max_num_batched_tokens, prefix_caching)
        config = SchedulerConfig(
            max_num_seqs,
            max_num_batched_tokens,
            max_model_len,
            chunked_prefill,
            policy,
            whole_media=whole_media,
            source_tokens=source_tokens,
        )
        self.scheduler = Scheduler(config, self.cache)
        self.worker = FakeWorker(list(specs), blocks, block_size)
        self.depth = depth
        self.inflight: deque[tuple[Batch, StepOutput, bool]] = deque()
        self.fault: Callable[[Batch], bool] = lambda batch: False
        """Whether a step fails; what the worker has done of it by then stays done."""
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[tuple[str, int], Event] = {}
        self.order: list[str] = []
        self.num_steps = 0
        self.computed = 0

    def add(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int = 5,
        *,
        priority: int = 0,
        salt: str | None = None,
        seed: int = 0,
        end: int | None = None,
        media: list[Media] | None = None,
        **params: object,
    ) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, **params)  # type: ignore[arg-type]
        ends = () if end is None else (end,)
        self.scheduler.add(
            EngineRequest(
                name,
                prompt,
                sampling,
                priority=priority,
                cache_salt=salt,
                seed=seed,
                eos_token_ids=ends,
                media=media or [],
            )
        )
        self.scheduler.check()

    def add_beams(self, name: str, prompt: list[int], width: int, max_tokens: int, end: int = 3) -> None:
        beam = BeamSearchParams(beam_width=width, max_tokens=max_tokens)
        self.scheduler.add(
            EngineRequest(name, prompt, SamplingParams(max_tokens=max_tokens), beam=beam, eos_token_ids=(end,))
        )

    def add_pooled(self, name: str, prompt: list[int]) -> None:
        self.scheduler.add(EngineRequest(name, prompt, SamplingParams(), pooling=PoolingParams()))

    def step(self) -> list[Event]:
        """Decide and compute as many batches as may be under way, then account for the oldest."""
        while len(self.inflight) < self.depth and (batch := self.scheduler.schedule()):
            self.compute(batch)
        if not self.inflight:
            assert not self.scheduler.has_work, "there is work, but nothing is scheduled"
            return []
        batch, output, failed = self.inflight.popleft()
        if failed:
            events = self.scheduler.retry("it broke")
            self.inflight.clear()
        else:
            events = self.scheduler.account(batch, output)
        self.book(events)
        self.scheduler.check()
        return events

    def compute(self, batch: Batch) -> None:
        config = self.scheduler.config
        assert 1 <= batch.num_tokens <= config.max_num_batched_tokens
        assert len(batch.rows) <= config.max_num_seqs
        assert len({row.slot for row in batch.rows}) == len(batch.rows)
        assert all(row.count >= 1 for row in batch.rows)
        if config.whole_media:
            ends = {row.slot: row.start + row.count for row in batch.rows}
            media = [(ends[s.slot], one) for s in batch.admitted for one in s.media if s.slot in ends]
            assert not [1 for end, one in media for first, stop in one.spans if first < end < stop], "a medium was cut"
        self.num_steps += 1
        self.computed += batch.num_tokens
        self.inflight.append((batch, self.worker.execute(batch), self.fault(batch)))
        held = list(self.worker.encoded.values())
        if config.source_tokens is not None:
            size = self.cache.block_size
            assert sum(-(-count // size) * size for count in held) <= config.source_tokens, "more are kept than may be"
        else:
            assert sum(held) <= config.max_num_batched_tokens or len(held) == 1, "more embeddings are kept than may be"

    def book(self, events: list[Event]) -> None:
        for event in events:
            key = (event.request_id, event.index)
            self.tokens.setdefault(key, []).extend(event.token_ids)
            if event.finish_reason is not None:
                assert key not in self.finished, "finished twice"
                self.finished[key] = event
                self.order.append(event.request_id)

    def run(self, at_most: int = 2000) -> None:
        while self.scheduler.has_work:
            self.step()
            assert self.num_steps < at_most, "starvation: too many steps"
