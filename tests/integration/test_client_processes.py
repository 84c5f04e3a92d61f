"""Processes: fork, spawn, pickle, and the end of the interpreter. What a DataLoader does to a file system object."""

import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator

import pytest

import luciola
from child_process import Child
from cluster import LocalCluster
from luciola.client import FileSystem, Operation
from luciola.errors import InvalidArgument

DATA = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def fs(shared_cluster: LocalCluster) -> Iterator[FileSystem]:
    with luciola.connect(shared_cluster.data) as fs:
        fs.makedirs("/processes", exist_ok=True)
        for number in range(8):
            fs.write(f"/processes/{number}", DATA[number:])
        yield fs
        fs.rmtree("/processes")


class Dataset:
    """Reads one file for each index, as a map-style dataset does."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs

    def __getitem__(self, index: int) -> bytes:
        with self.fs.open(f"/processes/{index}", "rb") as file:
            return file.read()


def work(dataset, indices, results):
    for index in indices:
        results.put((index, dataset[index] == DATA[index:]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_use_the_file_system_of_their_parent(fs, method):
    context = multiprocessing.get_context(method)
    results = context.Queue()
    dataset = Dataset(fs)
    assert dataset[0] == DATA
    workers = [context.Process(target=work, args=(dataset, range(k, 8, 2), results)) for k in range(2)]
    for worker in workers:
        worker.start()
    assert sorted(results.get(timeout=200) for _ in range(8)) == [(index, True) for index in range(8)]
    for worker in workers:
        worker.join(timeout=200)
        assert worker.exitcode == 0
    assert dataset[1] == DATA[1:], "the parent's connection is as it was"


def in_child(function) -> str:
    """What `function` returns in a forked child, or its error."""

    def said() -> str:
        try:
            return repr(function())
        except BaseException as error:  # noqa: BLE001 (the parent judges)
            return f"{type(error).__name__}: {error}"

    with Child(said) as child:
        return child.result()


def test_files_and_rings_of_the_parent_refuse_use_in_a_child(fs):
    with fs.open("/processes/0", "r+b") as file, fs.ring(4) as ring:
        file.write(b"\0")
        for use in (lambda: file.pread(1, 0), lambda: file.write(b"x"), file.flush, ring.drain):
            answer = in_child(use)
            assert answer.startswith("InvalidArgument")
            assert "spawn" in answer
        assert in_child(lambda: (file.close(), ring.close())) == "(None, None)"
        assert file.pread(4, 0) == DATA[:4]


def test_parent_continues_after_a_child_used_and_closed_the_file_system(fs):
    with fs.open("/processes/mine", "wb") as file:
        file.write(DATA)
        answer = in_child(lambda: (fs.read("/processes/3") == DATA[3:], fs.close()))
        assert answer == "(True, None)"
        file.write(DATA)
    assert fs.read("/processes/mine") == DATA * 2


def test_a_pickled_file_system_is_another_client_of_the_same_cluster(fs):
    copy = pickle.loads(pickle.dumps(fs))
    with copy:
        assert copy.cluster_id == fs.cluster_id
        assert copy.read("/processes/2") == DATA[2:]
    with pytest.raises(InvalidArgument, match="closed"):
        copy.read("/processes/2")
    assert fs.read("/processes/2") == DATA[2:]


def test_what_was_written_and_never_closed_is_there_after_the_interpreter_ended(fs, shared_cluster):
    program = (
        "import sys, luciola\n"
        f"fs = luciola.connect({str(shared_cluster.data)!r})\n"
        "file = fs.open('/processes/unclosed', 'wb')\n"
        "file.write(b'x' * 300_000)\n"
        "ring = fs.ring(8)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert fs.read("/processes/unclosed") == b"x" * 300_000


def test_connecting_imports_neither_grpc_nor_torch():
    program = "import sys, luciola; luciola.connect; print('grpc' in sys.modules, 'torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True
    )
    assert result.stdout == "False False\n"


def test_children_of_a_process_whose_threads_wait(fs):
    """What those threads wait in must not be the child's: their memory belongs to its new threads."""
    rings = [fs.ring(16) for _ in range(6)]
    with fs.open("/processes/0", "rb") as file:
        for ring in rings:
            ring.submit(Operation(file, at, bytearray(1000), user_data=at) for at in range(16))
            assert len(ring.drain(least=16)) == 16

        def read_by_rings() -> int:
            total = 0
            own = [fs.ring(32) for _ in range(8)]
            with fs.open("/processes/1", "rb") as file:
                for ring in own:
                    ring.submit(Operation(file, at, bytearray(1000)) for at in range(32))
                for ring in own:
                    total += sum(done.moved for done in ring.drain(least=32))
            return total

        for _ in range(4):
            assert in_child(read_by_rings) == str(8 * 32 * 1000)
    for ring in rings:
        ring.close()
