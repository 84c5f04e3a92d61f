"""Rings and asyncio on a real cluster."""

import asyncio
import errno
import gc
import os
import random
import select
import signal
import time
from collections.abc import Callable, Iterator

import pytest

import luciola
from cluster import LocalCluster
from luciola.client import Buffer, FileSystem, Operation
from luciola.config import ClientConfig
from luciola.errors import InvalidArgument, NotFound

MIB = 1 << 20


@pytest.fixture(scope="module")
def fs(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        yield fs


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(5).randbytes(9 * MIB + 123)


@pytest.fixture
def base(fs: FileSystem, data: bytes, request: pytest.FixtureRequest) -> Iterator[str]:
    path = f"/{request.module.__name__}/{request.node.name}"
    fs.makedirs(path)
    fs.write(f"{path}/f", data)
    yield path
    fs.rmtree(path)


def drain_all(ring, count):
    completed = []
    while len(completed) < count:
        completed += ring.drain(least=1, timeout_s=100)
        assert completed, "nothing completes"
    return completed


@pytest.mark.parametrize("kind", ["buffer", "view of buffer", "bytearray"])
def test_reads_of_a_whole_file_in_any_order_of_completion(fs, base, data, kind):
    memory = bytearray(len(data)) if kind == "bytearray" else Buffer(len(data))
    target = memoryview(memory) if kind == "view of buffer" else memory
    with fs.ring(64) as ring, fs.open(f"{base}/f", "rb") as file:
        count = -(-len(data) // MIB)
        taken = ring.submit(
            Operation(file, at * MIB, target, at * MIB, min(MIB, len(data) - at * MIB), user_data=at)
            for at in range(count)
        )
        assert taken == count
        done = drain_all(ring, count)
        assert sorted(one.user_data for one in done) == list(range(count))
        assert sum(one.moved for one in done) == len(data)
        assert bytes(memory) == data


def test_small_reads_of_many_files_and_inline_ones(fs, base):
    for number in range(40):
        fs.write(f"{base}/{number}", bytes([number]) * (100 if number % 2 else 20_000))
    buffer = Buffer(40 * 1000)
    files = [fs.open(f"{base}/{number}", "rb") for number in range(40)]
    with fs.ring(128) as ring:
        ring.submit(
            Operation(file, 10, buffer, at * 1000, 1000, user_data=at) for at, file in enumerate(files)
        )
        for one in drain_all(ring, 40):
            expected = 90 if one.user_data % 2 else 1000
            assert one.moved == expected
            start = one.user_data * 1000
            assert bytes(buffer)[start : start + expected] == bytes([one.user_data]) * expected
    for file in files:
        file.close()


def test_writes_are_acknowledged_when_they_complete(fs, base, data, shared_cluster):
    with (
        luciola.connect(shared_cluster.data) as other,
        fs.ring(32) as ring,
        fs.open(f"{base}/w", "wb") as file,
    ):
        ring.submit(
            Operation(file, at * MIB, data, at * MIB, MIB, write=True, user_data=at) for at in range(9)
        )
        assert all(one.moved == MIB for one in drain_all(ring, 9))
        with other.open(f"{base}/w", "rb") as reader:
            assert reader.read() == data[: 9 * MIB]


def test_a_full_ring_takes_no_more_than_it_has_room_for(fs, base):
    buffer = Buffer(4096)
    with fs.ring(4) as ring, fs.open(f"{base}/f", "rb") as file:
        operations = [Operation(file, 0, buffer, 0, 16, user_data=number) for number in range(10)]
        assert ring.entries == 4
        assert ring.submit(operations) == 4
        assert ring.in_flight == 4
        assert ring.submit(operations[4:]) == 0
        assert {one.user_data for one in ring.drain(least=4)} == {0, 1, 2, 3}
        assert ring.in_flight == 0
        assert ring.submit(operations[4:8]) == 4
        assert len(ring.drain(2, least=2)) == 2
        assert len(ring.drain(least=4)) == 2


def test_draining_waits_no_longer_than_its_timeout(fs, base):
    with fs.ring(4) as ring:
        assert ring.drain() == []
        assert ring.drain(least=1, timeout_s=100_000) == [], "nothing is in flight"
        for timeout_s in (-1, float("nan")):
            with pytest.raises(InvalidArgument):
                ring.drain(timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [1e19, 1e30, float("inf")])
def test_timeout_beyond_the_clock_is_none(fs, base, timeout_s):
    fs.write(f"{base}/f", b"bytes of a file")
    with fs.ring(4) as ring, fs.open(f"{base}/f", "rb") as file:
        ring.submit([Operation(file, 0, bytearray(5))])
        assert len(ring.drain(least=1, timeout_s=timeout_s)) == 1


@pytest.fixture
def stopped_storage(shared_cluster: LocalCluster) -> Iterator[Callable[[], None]]:
    """Storage nodes that do not answer until the result is called."""
    processes = [service["pid"] for service in shared_cluster.services("storage")]

    def resume() -> None:
        for process in processes:
            os.kill(process, signal.SIGCONT)

    for process in processes:
        os.kill(process, signal.SIGSTOP)
    yield resume
    resume()
    shared_cluster.wait_healthy()


class Interrupt(BaseException):
    """What a signal handler raises."""


def test_a_signal_handler_that_raises_ends_a_wait_and_results_come_later(
    fs, base, stopped_storage, interrupt_soon
):
    buffer = Buffer(8 * MIB)
    with fs.open(f"{base}/f", "rb") as file, fs.ring(8) as ring:
        ring.submit(Operation(file, at * MIB, buffer, at * MIB, MIB, user_data=at) for at in range(8))
        for wait in (lambda: ring.drain(least=8), ring.close):
            interrupt_soon()
            with pytest.raises(Interrupt):
                wait()
        assert ring.in_flight == 8
        stopped_storage()
        assert {one.user_data for one in drain_all(ring, 8) if one.moved == MIB} == set(range(8))


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_a_signal_handler_that_raises_ends_a_read_of_a_file(
    shared_cluster, base, data, stopped_storage, interrupt_soon, transport
):
    config = ClientConfig(transport=transport)
    with luciola.connect(shared_cluster.data, config=config) as fs, fs.open(f"{base}/f", "rb") as file:
        reads = {
            "small": lambda: file.pread(100, 5 * MIB),
            "large": lambda: file.pread(8 * MIB, 0),
            "into": lambda: file.pread_into(bytearray(MIB), 3 * MIB),
            "sequential": lambda: [file.read(5000) for _ in range(4)],
        }
        for kind, read in reads.items():
            begun = time.monotonic()
            interrupt_soon()
            with pytest.raises(Interrupt):
                read()
            assert time.monotonic() - begun < 2, kind
        stopped_storage()
        file.seek(0)
        assert file.read() == data


@pytest.fixture
def interrupt_soon() -> Iterator[Callable[[], None]]:
    """The signal of a timer, whose handler raises: not in a collection of garbage, which ignores exceptions."""

    def on_alarm(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, on_alarm)
    gc.collect()
    gc.disable()
    yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.05) and None
    gc.enable()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_the_descriptor_is_readable_exactly_while_there_are_results(fs, base):
    buffer = Buffer(4096)
    with fs.ring(4) as ring, fs.open(f"{base}/f", "rb") as file:
        assert select.select([ring], [], [], 0)[0] == []
        ring.submit([Operation(file, 0, buffer), Operation(file, 4096, buffer)])
        assert select.select([ring], [], [], 30)[0] == [ring]
        drain_all(ring, 2)
        assert select.select([ring], [], [], 0)[0] == []


def test_errors_come_as_completions_and_bad_submissions_at_once(fs, base):
    buffer = bytearray(100)
    with fs.ring(4) as ring:
        file = fs.open(f"{base}/f", "rb")
        ring.submit([Operation(file, 0, buffer, 0, 10, write=True, user_data="w")])
        (done,) = drain_all(ring, 1)
        assert done == ("w", -errno.EBADF)
        with pytest.raises(OSError) as caught:
            _ = done.moved
        assert caught.value.errno == errno.EBADF
        for bad in (
            Operation(file, 0, buffer, 90, 20),
            Operation(file, 0, buffer, 101, None),
            Operation(file, 0, b"read-only"),
            Operation(file, -1, buffer),
        ):
            with pytest.raises((ValueError, BufferError, OverflowError)):
                ring.submit([Operation(file, 0, buffer), bad])
        assert ring.in_flight == 0
        file.close()
        with pytest.raises(ValueError, match="closed"):
            ring.submit([Operation(file, 0, buffer)])
    with pytest.raises(InvalidArgument):
        ring.submit([])
    for entries in (0, 1 << 30):
        with pytest.raises(InvalidArgument):
            fs.ring(entries)


def test_a_buffer_is_page_aligned_writable_memory():
    buffer = Buffer(5000)
    assert len(buffer) == 5000
    view = memoryview(buffer)
    assert (view.nbytes, view.readonly, view.format) == (5000, False, "B")
    view[4999] = 7
    del buffer
    assert view[4999] == 7
    with pytest.raises(ValueError, match="at least one byte"):
        Buffer(0)
    with pytest.raises(OverflowError):
        Buffer(-1)


def test_asyncio_reads_and_writes(fs, base, data):
    async def main() -> None:
        assert await fs.aio.read(f"{base}/f") == data
        buffer = Buffer(MIB)
        assert await fs.aio.read_into(f"{base}/f", buffer, 9 * MIB) == 123
        async with await fs.aio.open(f"{base}/f") as file:
            buffers = [bytearray(1000) for _ in range(600)]
            offsets = [random.Random(number).randrange(9 * MIB) for number in range(600)]
            counts = await asyncio.gather(
                *(file.read_into(buffer, offset) for buffer, offset in zip(buffers, offsets, strict=True))
            )
            assert set(counts) == {1000}
            for buffer, offset in zip(buffers, offsets, strict=True):
                assert buffer == data[offset : offset + 1000]
            with pytest.raises(OSError):
                await file.write(b"x", 0)
        assert await fs.aio.write(f"{base}/w", data[:MIB]) == MIB
        assert (await fs.aio.stat(f"{base}/w")).st_size == MIB
        assert await fs.aio.listdir(base) == ["f", "w"]
        with pytest.raises(NotFound):
            await fs.aio.read(f"{base}/none")
        with pytest.raises(AttributeError):
            _ = fs.aio.walk
        await fs.aio.close()

    asyncio.run(main())
    asyncio.run(main_twice(fs, base))


async def main_twice(fs: FileSystem, base: str) -> None:
    assert len(await fs.aio.read(f"{base}/w")) == MIB
    await fs.aio.close()


def test_a_cancelled_read_leaves_its_buffer_alone_afterwards(fs, base):
    async def main() -> None:
        async with await fs.aio.open(f"{base}/f") as file:
            buffer = bytearray(4 * MIB)
            task = asyncio.create_task(file.read_into(buffer, 0))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            before = bytes(buffer)
            assert await file.read(10, 0) == os.fsencode(before[:10]) or len(before) == 4 * MIB
            assert bytes(buffer) == before
        await fs.aio.close()

    asyncio.run(main())
