import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from gemwright.checkpoint.prefetch import GgufPrefetch
from gemwright.runtime import startup
from tests.tiny.gguf import write_tiny_gguf


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    before = gc.isenabled()
    gc.enable()
    yield
    (gc.enable if before else gc.disable)()


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_no_collection_runs_during_the_pause_and_new_objects_are_old_after_it() -> None:
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


def test_garbage_of_the_pause_is_collected_afterwards() -> None:
    with startup.paused():
        gone = weakref.ref(Cycle())
    assert gone() is not None
    gc.collect()
    assert gone() is None


def test_a_disabled_collector_stays_disabled_and_frozen_objects_stay_frozen() -> None:
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


def test_overlapping_uses_restore_the_switch_interval() -> None:
    usual = sys.getswitchinterval()
    first, second = startup.fast_switching(), startup.fast_switching()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(startup.SWITCH_INTERVAL)
    second.__exit__(None, None, None)
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_overlapping_prefetches_in_threads_restore_the_switch_interval(tmp_path: Path) -> None:
    """Each begins and ends in its own thread, and the first to begin is the first to end."""
    path, usual = write_tiny_gguf(tmp_path / "tiny.gguf"), sys.getswitchinterval()
    both, first_ended = threading.Barrier(2), threading.Event()
    within: list[float] = []

    def first() -> None:
        with GgufPrefetch(path, native=True):
            both.wait(30)
        first_ended.set()

    def second() -> None:
        with GgufPrefetch(path, native=True):
            both.wait(30)
            assert first_ended.wait(30)
            within.append(sys.getswitchinterval())

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert within == [pytest.approx(startup.SWITCH_INTERVAL)]
    assert sys.getswitchinterval() == pytest.approx(usual)


def test_an_error_restores_the_switch_interval() -> None:
    usual = sys.getswitchinterval()
    with pytest.raises(KeyError), startup.fast_switching():
        raise KeyError
    assert sys.getswitchinterval() == pytest.approx(usual)
