"""A disk that hangs, fails or is merely slow; time is set by hand, and the disk answers when released."""

import asyncio
import errno
from concurrent.futures import Future

import pytest

from luciola.clock import ManualClock
from luciola.storage.disk_watch import ACCESS_FACTOR, LOOKS, DiskWatch

LIMIT_S = 30.0


class Disk:
    """Answers probes at once, or when released."""

    def __init__(self) -> None:
        self.hangs = False
        self.error: OSError | None = None
        self.probe: Future[None] = Future()
        self.access_s = 0.0
        self.failures: list[str] = []

    def begin(self) -> Future[None]:
        self.probe = Future()
        if not self.hangs:
            self.answer()
        return self.probe

    def answer(self) -> None:
        if self.error is None:
            self.probe.set_result(None)
        else:
            self.probe.set_exception(self.error)


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def run(test):
    async def main():
        disk, clock = Disk(), ManualClock()
        watch = DiskWatch(
            disk.begin, lambda: disk.access_s, disk.failures.append, clock=clock, limit_s=LIMIT_S
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
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())


def test_disk_that_hangs_is_declared_failed_after_the_limit():
    async def test(disk, look):
        disk.hangs = True
        await look(LOOKS - 1)
        assert disk.failures == []
        await look()
        assert disk.failures == ["a write of one block has not ended for 30 s"]
        await look(3 * LOOKS)
        assert len(disk.failures) == 1

    run(test)


def test_disk_that_answers_late_each_time_is_slow_and_not_failed():
    async def test(disk, look):
        disk.hangs = True
        for _ in range(4):
            await look(LOOKS - 1)
            disk.answer()
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
        await look()
        assert len(disk.failures) == failures

    run(test)
