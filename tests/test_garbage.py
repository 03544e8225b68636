"""The garbage collector rests while the engine starts, and is afterwards as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from vllm.garbage import no_collections, old_objects_spared


class Node:
    """Something that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The collector as the test found it."""
    was = gc.isenabled()
    gc.enable()
    yield
    gc.unfreeze()
    (gc.enable if was else gc.disable)()


def test_nothing_is_collected_meanwhile_and_all_is_old_afterwards() -> None:
    gc.collect()
    with no_collections():
        assert not gc.isenabled()
        before = [entry["collections"] for entry in gc.get_stats()]
        made = [[] for _ in range(5000)]
        assert [entry["collections"] for entry in gc.get_stats()] == before
    assert gc.isenabled() and len(made) == 5000
    assert gc.get_count()[0] < 1000 and len(gc.get_objects(generation=0)) < 1000 < len(gc.get_objects(generation=2))


def test_garbage_of_that_time_is_found_later() -> None:
    with no_collections():
        gone = weakref.ref(Node())
        assert gone() is not None
    gc.collect()
    assert gone() is None


def test_the_collector_runs_again_after_a_failure() -> None:
    with pytest.raises(ValueError, match="no"), no_collections():
        raise ValueError("no")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off_also_within_another_rest() -> None:
    with no_collections():
        with no_collections():
            pass
        assert not gc.isenabled()
    gc.disable()
    with no_collections():
        pass
    assert not gc.isenabled()


def test_what_the_application_froze_stays_frozen() -> None:
    gc.freeze()
    frozen = gc.get_freeze_count()
    with no_collections():
        pass
    assert gc.get_freeze_count() == frozen > 0


def test_old_objects_are_spared_for_a_while() -> None:
    old = Node()
    gone = weakref.ref(old)
    del old
    with old_objects_spared():
        young = Node()
        soon = weakref.ref(young)
        del young
        gc.collect()
        assert gone() is not None and soon() is None
    gc.collect()
    assert gone() is None and not gc.get_freeze_count()
