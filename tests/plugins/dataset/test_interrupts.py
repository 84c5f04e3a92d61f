"""An exception of a signal handler, at any step: nothing waits indefinitely, nothing is lost or read twice.

Handlers run between two steps of the interpreter. `Interrupted` raises there: behind the n-th call of the code that
reads batches, for every n until none is left.
"""

import dis
import itertools
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, Self

import numpy as np
import pytest

from luciola.client import LocalFileSystem, local_ring
from luciola.client import ring as cluster_ring
from luciola.plugins.dataset import FFRecordWriter, Loader, MapDataset, datasets, loader, open_records
from luciola.plugins.dataset import reader as reader_module
from luciola.plugins.dataset.reader import BatchReader
from luciola.plugins.dataset.records import Records, concurrently

FILES = {module.__file__ for module in (reader_module, datasets, loader, local_ring, cluster_ring)}


class Interrupt(BaseException):
    """What a handler raises."""


class Interrupted:
    """Raises `Interrupt` behind the n-th call in FILES, once."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.has_raised = False

    def __enter__(self) -> Self:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in FILES or code.co_name == "__del__" or self.has_raised:
            return None
        frame.f_trace_opcodes = True
        before = ""

        def step(frame: FrameType, event: str, _argument: Any) -> Any:
            nonlocal before
            if event == "opcode" and not self.has_raised:
                if before in {"CALL", "JUMP_BACKWARD", "RESUME"}:
                    self.left -= 1
                    if self.left < 0:
                        self.has_raised = True
                        raise Interrupt
                before = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            return step

        return step


@pytest.fixture
def records(tmp_path) -> Records:
    for name in "ab":
        with FFRecordWriter(tmp_path / f"{name}.ffr", 40) as writer:
            for number in range(40):
                writer.write(f"{name}{number}".encode())
    return open_records(tmp_path, file_system=LocalFileSystem())


def wanted(numbers: np.ndarray) -> list[bytes]:
    return [f"{'ab'[number // 40]}{number % 40}".encode() for number in numbers]


def test_reader_continues_after_an_interrupt_at_any_call(records, monkeypatch) -> None:
    monkeypatch.setattr(reader_module, "ENTRIES", 4)  # so that reads wait for room
    numbers = np.arange(0, 80, 7)
    reader = BatchReader([records])
    for place in itertools.count():
        try:
            with Interrupted(place) as interrupted:
                first, second = reader.start(numbers), reader.start(numbers[::-1])
                reader.cancel(second)
                assert [each.tobytes() for each in reader.finish(first).arrays()] == wanted(numbers)
        except Interrupt:
            pass
        assert [each.tobytes() for each in reader.read(numbers).arrays()] == wanted(numbers)
        if not interrupted.has_raised:
            break
    assert place > 50
    reader.read(numbers)
    channel = reader._channels[0]
    assert (channel.ring.in_flight, channel.queue, channel._completed) == (0, [], [])
    reader.close()


def test_loader_continues_after_an_interrupt_at_any_call(records) -> None:
    def texts(samples: Any) -> list[bytes]:
        return [bytes(each.tolist()) for each in samples]

    dataset = MapDataset(records)
    whole = list(Loader(dataset, global_batch_size=40, collate_fn=texts))
    for place in itertools.count(0, 11):
        stopped = Loader(dataset, global_batch_size=40, collate_fn=texts)
        seen = []
        try:
            with Interrupted(place) as interrupted:
                for texts_of_batch in stopped:
                    seen.append(texts_of_batch)  # noqa: PERF402 (an interrupt keeps what came before)
        except Interrupt:
            pass
        at = stopped.sample // 40 + 2 * stopped.epoch
        assert len(seen) in {at, at - 1}, "the batch on its way to the program at that moment"
        resumed = Loader(dataset, global_batch_size=40, collate_fn=texts)
        resumed.load_state_dict(stopped.state_dict())
        if at < 2:
            assert list(resumed) == whole[at:]
        assert seen == whole[: len(seen)]
        if not interrupted.has_raised:
            break
    assert place > 300
    dataset.close()


def test_wait_without_reads_in_flight_is_an_error(records) -> None:
    reader = BatchReader([records])
    pending = reader.start([1, 2, 50])
    pending.open.add(7)
    with pytest.raises(RuntimeError, match="1 reads of a batch have no results, and none is in flight"):
        reader.finish(pending)
    reader.close()


def test_interrupt_ends_what_threads_do_with_many_files() -> None:
    called: list[int] = []
    pause = threading.Event()

    def act(number: int) -> None:
        called.append(number)
        if number == 40:
            os.kill(os.getpid(), signal.SIGINT)
        pause.wait(0.005)

    with pytest.raises(KeyboardInterrupt):
        concurrently(act, range(4000))
    assert len(called) < 4000
