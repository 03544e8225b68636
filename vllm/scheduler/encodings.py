"""Which media the worker has encoded: what a step may need, what it is to encode for that, and what it can forget.

The worker does as the batches say and nothing else, so both always know the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from vllm.config import SchedulerConfig
from vllm.errors import RequestError
from vllm.messages import EncodeJob, EngineRequest, Media
from vllm.scheduler.request import Request


class Encodings:
    """Keeps account of the media whose embeddings the worker holds, by their keys."""

    def __init__(self, budget: int, *, whole: bool, room: int | None = None, block_size: int = 1) -> None:
        """`budget` is how many embeddings a step makes at most, and how many are kept, but for a single medium that has more.
        `whole`: no step ends within a run of tokens of a medium.  `room`: how many are kept, where that is another number;
        each medium then takes whole blocks."""
        self.budget = budget
        self.room = budget if room is None else room
        self.whole = whole
        self._block_size = block_size
        self._held: OrderedDict[bytes, int] = OrderedDict()  # in the order of their last use
        self._used: set[bytes] = set()  # in this step
        self._jobs: list[EncodeJob] = []
        self._forgotten: list[bytes] = []
        self._left = budget

    @classmethod
    def of(cls, config: SchedulerConfig, block_size: int) -> Encodings:
        """Return what keeps account where what is made of sources, if it is, lies in blocks of `block_size`."""
        room = config.source_tokens
        size = 1 if room is None else block_size
        return cls(config.max_num_batched_tokens, whole=config.whole_media, room=room, block_size=size)

    def __len__(self) -> int:
        """How many embeddings the worker holds, or blocks have room for."""
        return sum(self._held.values())

    def check(self, source: EngineRequest) -> None:
        """Raise RequestError for a medium that no step has room for."""
        longest = max((end - first for one in source.media for first, end in one.runs), default=0)
        if self.whole and longest > self.budget:
            raise RequestError(
                f"request {source.id} has {longest} tokens that see each other, and a step computes "
                f"{self.budget}; raise max_num_batched_tokens"
            )
        lasting = sum(self._size(one) for one in source.media if one.length)
        if lasting > self.room:
            raise RequestError(
                f"request {source.id} has media of {lasting:,} positions that all its tokens attend to, and the cache holds "
                f"{self.room:,}; give fewer, or raise max_num_seqs or the cache's memory"
            )

    def limit(self, request: Request, count: int) -> int:
        """Return how many of a request's next `count` tokens can be computed in this step, as far as its media go."""
        media, start = request.source.media, request.num_computed
        if not media or count <= 0:
            return count
        end, left = start + count, self._left
        is_alone = left == self.budget
        needed = {key: self._held[key] for key in self._used}
        for one in _reached(media, start, end):
            new, size = 0 if one.key in self._held else one.count, self._size(one)
            if one.key in needed:
                continue
            # alone, each can be encoded, and all that all tokens attend to; and there is room for that
            can_encode = new <= left or left == self.budget or (is_alone and one.length > 0)
            if needed and (not can_encode or sum(needed.values()) + size > self.room):
                end = max(start, one.first)
                break
            needed[one.key] = size
            left -= new
        if self.whole:
            end = min([end, *(first for one in media for first, stop in one.runs if first < end < stop)])
        return max(0, end - start)

    def use(self, request: Request, start: int, count: int) -> None:
        """Have what the tokens [start, start + count) of a request need be there in this step."""
        media = request.source.media
        needed = [index for index, one in enumerate(media) if _is_reached(one, start, start + count)]
        self._used.update(media[index].key for index in needed)
        for index in needed:
            one = media[index]
            if one.key in self._held:
                self._held.move_to_end(one.key)
                continue
            self._held[one.key] = self._size(one)
            self._left -= one.count
            self._jobs.append(EncodeJob(request.slot, index))
            self._make_room()

    def take(self) -> tuple[list[EncodeJob], list[bytes]]:
        """Return what the step is to encode, and what is to be forgotten before; the next step begins."""
        jobs, forgotten = self._jobs, self._forgotten
        self._jobs, self._forgotten, self._used, self._left = [], [], set(), self.budget
        return jobs, forgotten

    def forget_all(self) -> None:
        """Trust nothing that the worker holds: a step has failed."""
        self._forgotten += self._held
        self._held.clear()

    def _size(self, one: Media) -> int:
        """Return the room that a medium takes."""
        return -(-one.count // self._block_size) * self._block_size

    def _make_room(self) -> None:
        """Forget what was not used for longest, until all the rest has room."""
        for key in [key for key in self._held if key not in self._used]:
            if len(self) <= self.room:
                return
            del self._held[key]
            self._forgotten.append(key)


def _reached(media: Sequence[Media], start: int, end: int) -> Iterator[Media]:
    return (one for one in media if _is_reached(one, start, end))


def _is_reached(one: Media, start: int, end: int) -> bool:
    """Whether embeddings of a medium belong to tokens in [start, end)."""
    return one.first < end and one.end > start
