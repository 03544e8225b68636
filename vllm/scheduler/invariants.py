"""What must hold of a scheduler between any two steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.scheduler.request import ORDER, Request, Status

if TYPE_CHECKING:
    from vllm.scheduler.scheduler import Scheduler


def check_scheduler(scheduler: Scheduler, requests: list[Request], free_slots: list[int]) -> None:
    """Assert every invariant, given all requests that have not ended and the slots that nobody holds."""
    waiting, running = scheduler.waiting, scheduler.running
    assert sorted(map(id, requests)) == sorted(map(id, waiting + running)), "a request is in two places, or in none"
    for queue, status in ((waiting, Status.WAITING), (running, Status.RUNNING)):
        assert all(request.status is status for request in queue)
        assert queue == sorted(queue, key=ORDER), f"{status} is out of order"
    slots = [request.slot for request in running]
    assert sorted(slots + free_slots) == list(range(scheduler.config.max_num_seqs)), "a slot is lost or held twice"
    for request in requests:
        _check_request(request, scheduler.cache.block_size, scheduler.config.max_model_len)
    scheduler.cache.check([request.tables for request in requests if request.tables])
    if not requests:
        assert scheduler.cache.free() == [pool.num_usable for pool in scheduler.cache.pools], "nobody holds blocks"


def _check_request(request: Request, block_size: int, max_model_len: int) -> None:
    assert 0 <= request.num_computed <= request.num_tokens <= max_model_len
    assert request.num_registered * block_size <= request.num_computed
    if request.status is Status.WAITING:
        assert request.slot == -1
        assert request.tables or not request.num_computed
    for table in request.tables:
        assert len(table) >= -(-request.num_computed // block_size), "computed tokens without a block"
        assert len(table) <= -(-request.num_tokens // block_size), "blocks without tokens"
