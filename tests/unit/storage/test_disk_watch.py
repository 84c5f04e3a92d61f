"""A disk that hangs, fails or is merely slow; time is turned by hand, the disk is an event."""

import asyncio
import errno
import threading

import pytest

from luciola.clock import ManualClock
from luciola.storage.disk_watch import ACCESS_FACTOR, LOOKS, DiskWatch

LIMIT_S = 30.0


class Disk:
    """Answers probes at once, or after `release`."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.error: OSError | None = None
        self.probes = 0
        self.access_s = 0.0
        self.failures: list[str] = []

    def probe(self) -> None:
        self.answers.wait(60)
        self.probes += 1
        if self.error is not None:
            raise self.error

    async def answered(self, count: int) -> None:
        async with asyncio.timeout(60):
            while self.probes < count:  # noqa: ASYNC110 (a thread counts)
                await asyncio.sleep(0.001)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test):
    async def main():
        disk, clock = Disk(), ManualClock()
        watch = DiskWatch(
            disk.probe, lambda: disk.access_s, disk.failures.append, clock=clock, limit_s=LIMIT_S
        )
        task = asyncio.create_task(watch.run())

        async def look(count=1):
            for _ in range(count):
                await turn()
                clock.advance(LIMIT_S / LOOKS)
                await turn()

        try:
            await test(disk, look)
        finally:
            disk.answers.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_disk_that_hangs_is_declared_failed_after_the_limit():
    async def test(disk, look):
        disk.answers.clear()
        await look(LOOKS - 1)
        assert disk.failures == []
        await look()
        assert disk.failures == ["a write of one block has not ended for 30 s"]
        await look(3 * LOOKS)
        assert len(disk.failures) == 1

    run(test)


def test_disk_that_answers_late_each_time_is_slow_and_not_failed():
    async def test(disk, look):
        for count in range(1, 5):
            disk.answers.clear()
            await look(LOOKS - 1)
            disk.answers.set()
            await disk.answered(count)
            await look()
        disk.access_s = (ACCESS_FACTOR - 1) * LIMIT_S  # gigabytes are being flushed
        await look()
        assert disk.failures == []

    run(test)


def test_access_that_never_ends_counts_although_probes_are_answered():
    async def test(disk, look):
        disk.access_s = ACCESS_FACTOR * LIMIT_S
        await look()
        assert disk.failures == ["an access of the engine has not ended for 300 s"]

    run(test)


@pytest.mark.parametrize(("number", "failures"), [(errno.EIO, 1), (errno.EROFS, 0)])
def test_only_an_input_output_error_of_the_probe_is_a_failed_disk(number, failures):
    async def test(disk, look):
        disk.error = OSError(number, "made up")
        await disk.answered(1)
        await look()
        assert len(disk.failures) == failures

    run(test)
