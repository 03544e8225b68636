"""Who runs in a step, and how far.

    add ──▶ waiting ──admit──▶ running ──finish──▶ gone
              ▲                   │
              └────── preempt ────┘

`schedule` decides a Batch, the worker computes it, `account` books the results.  A request wants its computed tokens to
catch up with its tokens; a step gives it a count.  There is no other mode: a long prompt gets chunks, a decode gets one,
a prefix hit or a fork starts further on, a preempted request starts again.
"""

from __future__ import annotations

import bisect
import time

from vllm.config import SchedulerConfig
from vllm.errors import RequestError
from vllm.kv_cache.cache import KVCache
from vllm.messages import Batch, BlockCopy, EngineRequest, EngineStats, Event, Row, RowOutput, Sequence, StepOutput
from vllm.scheduler.beam import BeamGroup, Continuation, LiveBeam
from vllm.scheduler.encodings import Encodings
from vllm.scheduler.inflight import InFlight
from vllm.scheduler.invariants import check_scheduler
from vllm.scheduler.request import ORDER, Request, Status, longest_of, stop_cause
from vllm.scheduler.suspects import Suspects


class Scheduler:
    """Owns all requests, their blocks and their slots."""

    def __init__(self, config: SchedulerConfig, cache: KVCache) -> None:
        self.config = config
        self.cache = cache
        self.stats = EngineStats()
        """Counts since the start."""
        self.waiting: list[Request] = []  # both in the order of Request.order
        self.running: list[Request] = []
        self._by_id: dict[str, list[Request]] = {}
        self._inflight = InFlight()
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._admitted: list[Sequence] = []  # collected for the next batch
        self._released: list[int] = []
        self._copies: list[BlockCopy] = []
        self._encodings = Encodings.of(config, cache.block_size)
        self._suspects = Suspects()
        self._num_arrived = 0
        self._num_beams = 0
        self._step = 0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._inflight)

    # ── requests come and go ────────────────────────────────────────────────────────────────────────────────────────

    def add(self, source: EngineRequest) -> None:
        """Queue a request: one sequence for each of its outputs; all but the first wait for the first one's prompt."""
        if source.id in self._by_id:
            raise RequestError(f"request id {source.id!r} is in use", "request_id")
        if source.priority and self.config.policy != "priority":
            raise RequestError(
                f"priority={source.priority}, but requests run in the order they come; "
                "leave it out, or start the engine with scheduling_policy='priority'",
                "priority",
            )
        self._encodings.check(source)
        longest = longest_of(source, self.config.max_model_len)
        if not self.cache.fits(longest):
            raise RequestError(
                f"request {source.id} may grow to {longest} tokens, more than the KV cache holds; lower max_tokens"
            )
        leader = self._new_request(source, 0)
        members = [leader]
        for index in range(1, 1 if source.beam else source.params.num_samples):
            follower = self._new_request(source, index)
            follower.leader = leader
            members.append(follower)
        if source.beam is not None:
            max_output = min(source.beam.max_tokens, self.config.max_model_len - len(source.token_ids))
            end_tokens = frozenset(() if source.beam.ignore_eos else source.eos_token_ids)
            leader.beam = BeamGroup(source.beam, end_tokens, max_output, [LiveBeam(leader)])
        self._num_arrived += 1
        self._by_id[source.id] = members
        for member in members:
            bisect.insort(self.waiting, member, key=ORDER)

    def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; an unknown id is none."""
        for request in list(self._by_id.get(request_id, ())):
            self._end(request)

    def abort_all(self) -> None:
        """Forget every request."""
        for request_id in list(self._by_id):
            self.abort(request_id)

    def finish(self, request_id: str, index: int) -> None:
        """End one sequence early: its text met a stop string."""
        for request in list(self._by_id.get(request_id, ())):
            if request.index == index:
                self._end(request)

    # ── decide ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def schedule(self) -> Batch | None:
        """Decide the next step, or return None when no request can take one before a batch under way is accounted for."""
        self._suspects.forget_ended()
        rows: list[tuple[Request, Row]] = []
        budget = self.config.max_num_batched_tokens
        preemptions = self.stats.num_preemptions
        for request in list(self.running):
            count = self._encodings.limit(request, min(request.num_tokens - request.num_computed, budget))
            may_run = request.status is Status.RUNNING and count > 0 and self._suspects.may_run(request)
            if may_run and not request.ends_unknown(self.config.max_model_len) and self._make_room(request, count):
                rows.append((request, self._dispatch(request, count)))
                budget -= count
        if self.stats.num_preemptions == preemptions:  # else what is free now is wanted back at once
            rows += self._admit_waiting(budget)
        # all that run are beams that wait for one without a place
        while not rows and self.waiting and self.running and not self._inflight:
            self._preempt(self.running[-1])
            rows += self._admit_waiting(budget)
        if not rows:
            return None
        jobs, forgotten = self._encodings.take()
        batch = Batch(
            self._step, [row for _, row in rows], self._admitted, self._released, self._copies, jobs, forgotten
        )
        self._admitted, self._released, self._copies = [], [], []
        self._inflight.push(rows)
        self._step += 1
        return batch

    def _make_room(self, request: Request, count: int) -> bool:
        """Take the blocks for `count` more tokens; if need be from those that come last.  False: it came last itself."""
        request.num_trimmed = self.cache.trim(request.tables, request.num_trimmed, request.num_computed)
        while not self.cache.extend(request.tables, request.num_computed + count):
            if self._drop_waiting_forks():
                continue
            victim = self.running[-1]
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _admit_waiting(self, budget: int) -> list[tuple[Request, Row]]:
        """Let waiting requests in, strictly in order, while slots, blocks and the token budget last."""
        rows: list[tuple[Request, Row]] = []
        promised = self._promised() if self.waiting and self._free_slots and budget > 0 else []
        position = 0
        while position < len(self.waiting) and self._free_slots and budget > 0:
            request = self.waiting[position]
            if request.is_parked or not self._suspects.may_run(request):  # it holds nobody up
                position += 1
                continue
            count = self._claim(request, budget, promised)
            if count == 0:
                if self.running or not self._drop_waiting_forks(request):
                    break
                continue
            del self.waiting[position]
            self._start(request)
            lacks = self.cache.lacks(request.tables, request.num_tokens)
            promised = [a + b for a, b in zip(promised, lacks, strict=True)]
            rows.append((request, self._dispatch(request, count)))
            budget -= count
        return rows

    def _promised(self) -> list[int]:
        """Blocks that the running requests will still take for the tokens they have."""
        lacks = [self.cache.lacks(request.tables, request.num_tokens) for request in self.running]
        return [sum(column) for column in zip(*lacks, strict=True)] or [0] * len(self.cache.pools)

    def _claim(self, request: Request, budget: int, promised: list[int]) -> int:
        """Give a waiting request its cached prefix and the blocks of its first chunk; return the chunk's size.

        0: not now, and nothing is held.  A request is let in only if all the tokens it has now can be computed without
        taking blocks from those already running.
        """
        is_new = not request.tables
        if is_new:
            self._find_prefix(request)
        lacks = self.cache.lacks(request.tables, request.num_tokens)
        remaining = request.num_tokens - request.num_computed
        has_blocks = all(a + b <= c for a, b, c in zip(lacks, promised, self.cache.free(), strict=True))
        has_budget = remaining <= budget or self.config.chunked_prefill
        count = self._encodings.limit(request, min(remaining, budget))
        has_budget = has_budget and count > 0 and (count == remaining or self.config.chunked_prefill)
        if has_blocks and has_budget and self.cache.extend(request.tables, request.num_computed + count):
            return count
        if is_new:
            self._release(request)
        return 0

    def _find_prefix(self, request: Request) -> None:
        request.tables = self.cache.new_tables()
        if not self.cache.prefix_caching or not request.may_read_prefix_cache:
            return
        size = self.cache.block_size
        usable = (request.num_tokens - 1) // size  # the last token is always computed: its logits are wanted
        request.extend_hashes(size, usable)
        request.num_computed, request.tables = self.cache.find_prefix(request.hashes[:usable])
        request.num_registered = request.num_computed // size

    def _start(self, request: Request) -> None:
        """Give a request a slot."""
        if not request.was_admitted and request.index == 0:  # its siblings share its prompt by forking, which is no hit
            request.num_cached = request.num_computed
            self.stats.prefix_queries += request.num_prompt
            self.stats.prefix_hits += request.num_cached
        if not request.was_admitted:
            request.was_admitted, request.scheduled = True, time.monotonic()
        request.status = Status.RUNNING
        request.slot = self._free_slots.pop()
        request.num_sent = [0] * len(request.tables)
        request.choice = None  # the worker gets all its tokens now
        bisect.insort(self.running, request, key=ORDER)
        self._admitted.append(request.as_sequence())

    def _dispatch(self, request: Request, count: int) -> Row:
        """Write a request's row and count its tokens as computed."""
        start = request.num_computed
        request.num_computed += count
        self._encodings.use(request, start, count)
        new_blocks = [table[sent:] for table, sent in zip(request.tables, request.num_sent, strict=True)]
        request.num_sent = [len(table) for table in request.tables]
        stale = [spec.num_stale(start, self.cache.block_size) for spec in self.cache.specs]
        tokens = [] if request.choice is None else [request.choice]
        request.choice = None
        return Row(
            slot=request.slot,
            start=start,
            count=count,
            new_blocks=new_blocks,
            wants_token=request.num_computed == request.num_tokens,
            tokens=tokens,
            stale=stale if any(stale) else [],
        )

    def _preempt(self, request: Request) -> None:
        """Take everything from a running request and queue it again, before all that came later."""
        self.stats.num_preemptions += 1
        self.running.remove(request)
        self._free(request)
        request.status = Status.WAITING
        bisect.insort(self.waiting, request, key=ORDER)

    def _drop_waiting_forks(self, spared: Request | None = None) -> bool:
        """Take back the blocks that forks hold while they wait; they will compute those tokens again."""
        holders = [request for request in self.waiting if request.tables and request is not spared]
        for request in holders:
            self._release(request)
        return bool(holders)

    # ── account ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def account(self, batch: Batch, output: StepOutput) -> list[Event]:
        """Book the results of a step; return the news for the output side."""
        events: list[Event] = []
        groups: dict[int, BeamGroup] = {}
        for request, row, result in zip(self._inflight.pop(), batch.rows, output.rows, strict=True):
            if request.status is Status.FINISHED:
                continue
            if result.error is not None:
                events.append(self._fail(request, result.error))
                continue
            self._suspects.came_to(request, row.start + row.count)
            self._register(request, row.start + row.count)
            self._release_followers(request, row)
            if request.beam is not None:
                if row.wants_token:
                    request.beam.beam_of(request).candidates = result.candidates
                    request.has_candidates = True
                    groups[id(request.beam)] = request.beam
            elif event := self._book(request, row, result):
                events.append(event)
        for group in groups.values():
            if group.is_ready:
                events += self._advance(group)
        return events

    def _book(self, request: Request, row: Row, result: RowOutput) -> Event | None:
        """Append the new token, see whether it is the last, and tell."""
        event = Event(request.id, request.index, [], num_cached=request.num_cached, scheduled=request.scheduled)
        if result.prompt_logprobs:  # after a preemption the first ones come again
            event.prompt_logprobs = result.prompt_logprobs[max(0, request.num_prompt_logprobs - row.start) :]
            request.num_prompt_logprobs += len(event.prompt_logprobs)
        if result.pooled is not None:
            event.pooled, event.finish_reason = result.pooled, "stop"
            self._end(request)
        elif row.wants_token:
            request.tokens.append(result.token)
            event.token_ids = [result.token]
            if result.logprobs is not None:
                event.logprobs = [result.logprobs]
            if cause := stop_cause(request, result.token, self.config.max_model_len):
                event.finish_reason, event.stop_reason = cause
                self._end(request)
        return event if event.token_ids or event.prompt_logprobs or event.pooled else None

    def _register(self, request: Request, num_computed: int) -> None:
        """Offer the blocks that the step filled to the prefix cache."""
        if not self.cache.prefix_caching or not request.tables:
            return
        full = num_computed // self.cache.block_size
        if full > request.num_registered:
            request.extend_hashes(self.cache.block_size, full)
            self.cache.register(request.tables, request.hashes[:full], request.num_registered)
            request.num_registered = full

    def _release_followers(self, leader: Request, row: Row) -> None:
        """Once a prompt is computed, its siblings fork: they share it, but for the last token, whose logits they want."""
        if not row.start < leader.num_prompt <= row.start + row.count:
            return
        for follower in self._by_id[leader.id]:
            if follower.leader is leader:
                follower.leader = None
                if leader.tables and leader.num_prompt > 1:
                    self._fork(leader, follower, leader.num_prompt - 1)

    def _fork(self, parent: Request, child: Request, num_tokens: int) -> None:
        """Let a waiting request start with the first `num_tokens` of another's cache."""
        num_tokens, tables, copies = self.cache.fork(parent.tables, parent.num_computed, num_tokens)
        child.tables = tables if num_tokens else []
        self._copies += [BlockCopy(group, source, target) for group, source, target in copies]
        child.num_computed = num_tokens
        child.num_registered = min(parent.num_registered, num_tokens // self.cache.block_size)
        child.hashes = parent.hashes[: child.num_registered]

    def _advance(self, group: BeamGroup) -> list[Event]:
        """Take a step of a beam search: fork the beams that go on in several ways, drop those that don't go on."""
        continuations = group.advance()
        if not continuations:
            source = group.live[0].request.source
            self.abort(source.id)
            return [Event(source.id, 0, [], finish_reason=group.finished[0].finish_reason, beams=group.finished)]
        old, group.live = group.live, []
        heirs: list[Continuation] = []
        for continuation in continuations:
            parent = continuation.parent
            if any(heir.parent is parent for heir in heirs):
                request = self._fork_beam(group, continuation)
            else:  # the first goes on in place, once all others have forked off
                heirs.append(continuation)
                request = parent.request
            path = [*parent.logprobs, parent.candidates or []]
            group.live.append(LiveBeam(request, continuation.cum_logprob, path))
        for heir in heirs:
            request = heir.parent.request
            request.tokens.append(heir.token)
            request.choice, request.has_candidates = heir.token, False
        for beam in old:
            if not any(heir.parent is beam for heir in heirs):
                self._end(beam.request)
        return []

    def _fork_beam(self, group: BeamGroup, continuation: Continuation) -> Request:
        parent = continuation.parent.request
        self._num_beams += 1
        child = self._new_request(parent.source, self._num_beams)
        child.order = (*parent.order[:2], self._num_beams)
        child.tokens = [*parent.tokens, continuation.token]
        child.beam = group
        if parent.tables:
            self._fork(parent, child, parent.num_computed)
        self._by_id[parent.id].append(child)
        bisect.insort(self.waiting, child, key=ORDER)
        return child

    def _fail(self, request: Request, error: str) -> Event:
        """End a request whose row went wrong; of a beam search, all beams."""
        if request.beam is not None:
            self.abort(request.id)
        else:
            self._end(request)
        return Event(request.id, 0 if request.beam else request.index, [], finish_reason="error", error=error)

    def retry(self, error: str) -> list[Event]:
        """Book a step that failed as a whole, by finding whose fault it was.

        Its requests give everything back and are computed again, half of them at a time and nobody beside them, until a
        step of one row fails: that one ends with the error.  The others notice nothing.
        """
        computed = self._inflight.pop()
        failed = {one: one.num_computed for one in computed if one.status is not Status.FINISHED}
        self._begin_again()
        if len(computed) > 1:  # though of all but one it may be that they have ended meanwhile
            self._suspects.split(failed)
            return []
        return [self._fail(request, error) for request in failed]

    def drop(self) -> list[str]:
        """Book a step that failed as a whole: end its requests, and return their ids."""
        names = list(dict.fromkeys(request.id for request in self._inflight.pop()))
        for name in names:
            self.abort(name)
        self._begin_again()
        return names

    def _begin_again(self) -> None:
        """After a step that failed: take everything back, since what it left behind can't be trusted."""
        self._inflight.forget()  # what is under way was computed on top of it
        self._encodings.forget_all()
        for request in list(self.running):
            self._preempt(request)
        self._drop_waiting_forks()  # copies of their blocks may not have been made

    # ── what requests hold ──────────────────────────────────────────────────────────────────────────────────────────

    def _new_request(self, source: EngineRequest, index: int) -> Request:
        return Request.of(source, index, (source.priority, self._num_arrived, index))

    def _end(self, request: Request) -> None:
        """Take a request out of the scheduler for good."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.remove(request)
        self._free(request)
        request.status = Status.FINISHED
        members = self._by_id[request.id]
        members.remove(request)
        for member in members:
            if member.leader is request:  # it never got there: each computes the prompt itself
                member.leader = None
        if not members:
            del self._by_id[request.id]

    def _free(self, request: Request) -> None:
        """Give back slot and blocks."""
        if request.slot >= 0:
            self._free_slots.append(request.slot)
            self._released.append(request.slot)
            request.slot = -1
        self._release(request)

    def _release(self, request: Request) -> None:
        """Give back blocks; the request has computed nothing then."""
        if request.tables:
            self.cache.release(request.tables)
            request.tables = []
        request.num_computed = request.num_registered = request.num_trimmed = 0

    def check(self) -> None:
        """Assert every invariant of scheduler and cache, between steps."""
        check_scheduler(self, [request for members in self._by_id.values() for request in members], self._free_slots)
