"""Real processes for tests with ranks: one parent imports torch, then forks the ranks of each case.

`serve` is that parent, `Ranks` its other end; a module of cases (`pipeline_cases`) is what a rank can do.
Frames on its pipes are a length and a pickle.
"""

import contextlib
import copy
import gc
import importlib
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from luciola.cli.datadir import free_ports

CASE_S = 250.0
"""After so long the ranks of a case are killed, and their results are missing, unless another limit is given."""


@dataclass
class Answer:
    """The outcome of one rank."""

    value: Any = None
    error: str = ""
    """Type of an exception that left the rank's function."""
    message: str = ""
    status: int = -1
    """As os.waitpid gives it: 0 is a clean end, a signal's number one that was killed."""


class Ranks:
    """Runs cases in the forking parent."""

    def __init__(self, cases: str = "pipeline_cases") -> None:
        of_tests = [each for each in sys.path if each.startswith(os.path.dirname(__file__))]
        paths = [*of_tests, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._parent = subprocess.Popen(
            [sys.executable, "-c", f"import pipeline_ranks; pipeline_ranks.serve({cases!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCH_CPP_LOG_LEVEL": "ERROR"},
        )
        self._cases = cases

    def of(self, cases: str) -> "Ranks":
        """The same parent with the cases of another module: importing torch once more takes seconds."""
        other = copy.copy(self)
        other._cases = cases
        return other

    def run(self, case: str, size: int, *, limit_s: float = CASE_S, **arguments: Any) -> list[Answer]:
        """One process for each rank, each calling the function named `case` with its rank, size and arguments."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        _write(self._parent.stdin.fileno(), pickle.dumps((self._cases, case, size, limit_s, arguments)))
        return pickle.loads(_read(self._parent.stdout.fileno()))

    def close(self) -> None:
        assert self._parent.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # Its end alone would not do: a process that was forked here meanwhile has the pipe too.
            _write(self._parent.stdin.fileno(), b"")
        self._parent.stdin.close()
        try:
            self._parent.wait(CASE_S)  # a busy machine takes long to end a process that has loaded torch
        finally:
            self._parent.kill()
            self._parent.wait()
        assert self._parent.stdout is not None
        self._parent.stdout.close()


def _write(fd: int, data: bytes) -> None:
    data = struct.pack("<Q", len(data)) + data
    while data:
        data = data[os.write(fd, data) :]


def _read(fd: int) -> bytes:
    def exactly(count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            part = os.read(fd, count - len(parts))
            if not part:
                raise EOFError
            parts += part
        return parts

    return exactly(struct.unpack("<Q", exactly(8))[0])


def serve(module: str) -> NoReturn:
    """The parent: nothing here may start a thread, for it forks."""
    import sympy  # noqa: F401 - torch imports it at the first custom autograd function, 0.7 s in each rank

    importlib.import_module(module)
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not be read as a frame
    while True:
        try:
            module, case, size, limit_s, arguments = pickle.loads(_read(0))
        except EOFError:  # also of an empty request
            os._exit(0)  # taking apart what is frozen would only be reported as leaks
        cases = importlib.import_module(module)
        gc.freeze()  # a collection in a rank would copy every page of torch's objects
        _write(answers, pickle.dumps(_run(getattr(cases, case), size, limit_s, arguments)))


def _run(case: Any, size: int, limit_s: float, arguments: dict[str, Any]) -> list[Answer]:
    [port] = free_ports(1)
    children = [_fork(case, rank, size, port, arguments) for rank in range(size)]
    texts: dict[int, bytes] = dict.fromkeys((fd for _, fd in children), b"")
    open_fds = set(texts)
    deadline = time.monotonic() + limit_s
    while open_fds and time.monotonic() < deadline:
        for fd in select.select(list(open_fds), [], [], 0.5)[0]:
            part = os.read(fd, 1 << 16)
            texts[fd] += part
            if not part:
                open_fds.discard(fd)
    result = []
    for pid, fd in children:
        if fd in open_fds:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        os.close(fd)
        answer = pickle.loads(texts[fd]) if texts[fd] else Answer()
        answer.status = status
        result.append(answer)
    return result


def _fork(case: Any, rank: int, size: int, port: int, arguments: dict[str, Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    os.close(reader)
    answer = _rank(case, rank, size, port, arguments)
    data = pickle.dumps(answer)
    while data:
        data = data[os.write(writer, data) :]
    sys.stderr.flush()
    os._exit(0)


def _rank(case: Any, rank: int, size: int, port: int, arguments: dict[str, Any]) -> Answer:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    answer = Answer()
    try:
        if getattr(case, "without_group", False):  # it makes processes that make groups of their own
            answer.value = case(rank, size, **arguments)
            return answer
        store = dist.TCPStore(
            "127.0.0.1",
            port,
            size,
            is_master=rank == 0,
            timeout=timedelta(seconds=100),
            wait_for_workers=False,
        )
        store.set(f"pid/{rank}", str(os.getpid()))
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=30)
        )
        sys.modules[case.__module__].STORE[:] = [store]  # type: ignore[attr-defined]
        answer.value = case(rank, size, **arguments)
        dist.destroy_process_group()
        _leave_together(store, rank, size)
    except BaseException as error:  # noqa: BLE001 - the test wants to see any
        answer.error = type(error).__name__
        answer.message = str(error)
    return answer


def _leave_together(store: Any, rank: int, size: int) -> None:
    """The rank that hosts the store leaves after all others have left or died."""
    if rank:
        with contextlib.suppress(RuntimeError):  # the store has gone with its rank, as a test wanted
            store.set(f"left/{rank}", "1")
        return
    waited = set(range(1, size))
    while waited:
        waited = {each for each in waited if not store.check([f"left/{each}"]) and _lives(store, each)}
        time.sleep(0.002)


def _lives(store: Any, rank: int) -> bool:
    """Our siblings stay as zombies until the parent looks at them."""
    with open(f"/proc/{int(store.get(f'pid/{rank}'))}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"
