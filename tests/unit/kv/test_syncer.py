"""Group commit against a flush that the test holds in its hands."""

import asyncio
import threading

import pytest

from luciola.errors import Unavailable
from luciola.kv.syncer import Syncer


class Disk:
    """A flush that waits to be let through, and can fail."""

    def __init__(self, *, held: bool = False) -> None:
        self.begun = threading.Semaphore(0)
        self.gate = threading.Event()
        self.error: OSError | None = None
        self.flushes = 0
        if not held:
            self.gate.set()

    def flush(self) -> None:
        self.begun.release()
        assert self.gate.wait(60), "the test forgot to open the gate"
        self.flushes += 1
        if self.error is not None:
            raise self.error


def test_many_waiters_share_two_flushes():
    disk = Disk(held=True)
    syncer = Syncer(disk.flush, interval_s=60)

    async def scenario() -> None:
        syncer.wrote()
        first = asyncio.create_task(syncer.sync())
        await asyncio.to_thread(disk.begun.acquire)
        late = []
        for _ in range(100):  # while the first flush runs
            syncer.wrote()
            late.append(asyncio.create_task(syncer.sync()))
        await asyncio.sleep(0)
        disk.gate.set()
        await asyncio.gather(first, *late)

    asyncio.run(scenario())
    assert disk.flushes == 2
    syncer.close()


def test_sync_waits_for_a_flush_that_began_after_the_call():
    disk = Disk(held=True)
    syncer = Syncer(disk.flush, interval_s=60)

    async def scenario() -> None:
        syncer.wrote()
        first = asyncio.create_task(syncer.sync())
        await asyncio.to_thread(disk.begun.acquire)
        syncer.wrote()
        second = asyncio.create_task(syncer.sync())
        await asyncio.sleep(0)
        disk.gate.set()
        await second
        assert first.done()
        assert disk.flushes == 2

    asyncio.run(scenario())
    syncer.close()


def test_sync_without_writes_does_not_flush():
    disk = Disk()
    syncer = Syncer(disk.flush, interval_s=60)
    asyncio.run(syncer.sync())
    assert disk.flushes == 0
    syncer.close()
    assert disk.flushes == 0


def test_writes_are_flushed_without_anybody_asking():
    disk = Disk()
    syncer = Syncer(disk.flush, interval_s=0.001)
    syncer.wrote()
    assert disk.begun.acquire(timeout=60)
    syncer.wrote()
    assert disk.begun.acquire(timeout=60)
    syncer.close()


def test_writes_within_one_interval_share_a_flush():
    disk = Disk()
    syncer = Syncer(disk.flush, interval_s=60)
    for _ in range(1000):
        syncer.wrote()
    syncer.close()
    assert disk.flushes == 1


def test_close_flushes_what_was_written():
    disk = Disk()
    syncer = Syncer(disk.flush, interval_s=60)
    syncer.wrote()
    syncer.close()
    assert disk.flushes == 1


def test_failed_flush_reaches_everybody_and_is_never_forgotten():
    disk = Disk(held=True)
    disk.error = OSError(5, "bad disk")
    syncer = Syncer(disk.flush, interval_s=60)

    async def scenario() -> None:
        syncer.wrote()
        first = asyncio.create_task(syncer.sync())
        await asyncio.to_thread(disk.begun.acquire)
        second = asyncio.create_task(syncer.sync())
        await asyncio.sleep(0)
        disk.gate.set()
        for task in (first, second):
            with pytest.raises(Unavailable, match="bad disk") as caught:
                await task
            assert isinstance(caught.value.__cause__, OSError)
        disk.error = None
        with pytest.raises(Unavailable):
            await syncer.sync()

    asyncio.run(scenario())
    with pytest.raises(Unavailable):
        syncer.close()


def test_cancelled_waiter_does_not_disturb_the_others():
    disk = Disk(held=True)
    syncer = Syncer(disk.flush, interval_s=60)

    async def scenario() -> None:
        syncer.wrote()
        impatient = asyncio.create_task(syncer.sync())
        patient = asyncio.create_task(syncer.sync())
        await asyncio.to_thread(disk.begun.acquire)
        impatient.cancel()
        await asyncio.sleep(0)
        disk.gate.set()
        await patient

    asyncio.run(scenario())
    syncer.close()


def test_mistake_in_the_thread_reaches_everybody():
    def flush() -> None:
        raise SystemExit("a mistake, on purpose")

    syncer = Syncer(flush, interval_s=60)

    async def scenario() -> None:
        syncer.wrote()
        with pytest.raises(Unavailable, match="on purpose"):
            await asyncio.wait_for(syncer.sync(), timeout=60)

    asyncio.run(scenario())
    with pytest.raises(Unavailable, match="on purpose"):
        syncer.close()
