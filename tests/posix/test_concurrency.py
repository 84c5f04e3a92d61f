"""Many programs on one mount at the same time."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from child_process import Child

pytestmark = pytest.mark.mount

WORKERS = 4


def at_once(work: Callable[[int], None], count: int = WORKERS) -> None:
    """Runs `work(0)`, `work(1)`, … in processes of their own, all at once."""
    with ExitStack() as stack:
        for child in [stack.enter_context(Child(work, number)) for number in range(count)]:
            child.result()


@pytest.mark.parametrize("attempt", range(20))
def test_appenders_lose_nothing_and_tear_nothing(area, attempt):
    """Often: what it once found, bytes that arrived while a length was being sent, showed one time in twenty."""
    rounds = 200

    def append(number: int) -> None:
        descriptor = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for round_ in range(rounds):
            record = b"%d:%04d:" % (number, round_) + bytes([65 + number]) * (50 + number * 900) + b"\n"
            assert os.write(descriptor, record) == len(record)
        os.close(descriptor)

    at_once(append)
    records = Path("log").read_bytes().splitlines()
    assert len(records) == WORKERS * rounds
    seen = {}
    for record in records:
        number, round_, body = record.split(b":")
        assert body == bytes([65 + int(number)]) * (50 + int(number) * 900)
        assert seen.get(number, -1) < int(round_), "records of one writer stay in order"
        seen[number] = int(round_)


def test_writers_of_different_parts_of_one_file(area):
    part = 700_001

    def write(number: int) -> None:
        descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
        for start in range(0, part, 50_000):
            length = min(50_000, part - start)
            os.pwrite(descriptor, bytes([number + 1]) * length, number * part + start)
        assert os.pread(descriptor, part, number * part) == bytes([number + 1]) * part
        os.close(descriptor)

    at_once(write)
    expected = b"".join(bytes([number + 1]) * part for number in range(WORKERS))
    assert Path("a").read_bytes() == expected


def test_one_exclusive_creator_wins(area):
    def create(number: int) -> None:
        for round_ in range(50):
            try:
                descriptor = os.open(f"lock-{round_}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                continue
            os.write(descriptor, b"%d" % number)
            os.close(descriptor)

    at_once(create)
    for round_ in range(50):
        assert len(Path(f"lock-{round_}").read_bytes()) == 1


def test_creators_in_one_directory(area):
    def create(number: int) -> None:
        for index in range(200):
            Path(f"{number}-{index}").write_bytes(b"%d %d" % (number, index))
        for index in range(0, 200, 2):
            os.unlink(f"{number}-{index}")

    at_once(create)
    assert len(os.listdir()) == WORKERS * 100
    assert Path("2-77").read_bytes() == b"2 77"


def test_renames_between_two_directories_lose_nothing(area):
    os.mkdir("x")
    os.mkdir("y")
    for number in range(WORKERS):
        Path(f"x/{number}").write_bytes(b"%d" % number)

    def swing(number: int) -> None:
        for _ in range(100):
            os.rename(f"x/{number}", f"y/{number}")
            os.rename(f"y/{number}", f"x/{number}")

    at_once(swing)
    assert sorted(os.listdir("x")) == [str(number) for number in range(WORKERS)]
    assert os.listdir("y") == []


def test_replacing_by_rename_never_shows_half(area):
    Path("config").write_bytes(b"0" * 5000)

    def work(number: int) -> None:
        for round_ in range(100):
            if number < 2:
                temporary = f"tmp-{number}"
                Path(temporary).write_bytes(b"%d" % (round_ % 10) * 5000)
                os.rename(temporary, "config")
            else:
                data = Path("config").read_bytes()
                assert len(data) == 5000
                assert len(set(data)) == 1

    at_once(work)


def test_locks_exclude_each_other(area):
    import fcntl

    Path("counter").write_bytes(b"0")

    def count(_: int) -> None:
        for _ in range(50):
            with open("counter", "r+b", buffering=0) as file:
                fcntl.lockf(file, fcntl.LOCK_EX)
                value = int(os.pread(file.fileno(), 20, 0))
                os.pwrite(file.fileno(), b"%d" % (value + 1), 0)
                fcntl.lockf(file, fcntl.LOCK_UN)

    at_once(count)
    assert int(Path("counter").read_bytes()) == WORKERS * 50
