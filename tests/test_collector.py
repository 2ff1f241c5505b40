import gc
import weakref
from collections.abc import Iterator

import pytest

from gemwright.runtime import startup


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    before = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if before else gc.disable)()


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_no_collection_runs_meanwhile_and_what_stays_is_old() -> None:
    started: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        started.append(info["generation"])

    gc.callbacks.append(note)
    try:
        with startup.paused():
            kept = [Cycle() for _ in range(20_000)]
            assert not started
    finally:
        gc.callbacks.remove(note)
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    old = {id(each) for each in gc.get_objects(generation=2)}
    assert all(id(each) in old for each in kept)


def test_garbage_of_the_pause_is_collected_later() -> None:
    with startup.paused():
        gone = weakref.ref(Cycle())
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_a_collector_that_is_off_stays_off_and_what_is_frozen_stays_frozen() -> None:
    gc.disable()
    gc.freeze()
    try:
        with startup.paused():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_an_error_ends_the_pause() -> None:
    with pytest.raises(KeyError), startup.paused():
        raise KeyError
    assert gc.isenabled()
