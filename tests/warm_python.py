"""A `python` whose programs begin with torch imported: each is forked from one process that has imported it.

A test uses `WarmPython.path` in place of sys.executable, and so do its programs. The file there is a client that sends
its arguments, environment, directory and open files, waits, and ends as its program does. What torch and Triton read
when they are imported is the same for all programs: one thread, kernels that are not interpreted.
"""

import array
import atexit
import contextlib
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any, Final, NoReturn

MODULES: Final = ("torch", "torch._dynamo", "torch.distributed.fsdp")
"""What takes seconds to import; the second is imported at the first optimizer or autograd function."""
SAME: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
"""The environment that all programs have, because it was read before them."""
END_S: Final = 60.0
"""After so long without an end the process that forks is killed: programs that it has started may be left."""
FILES_MAX: Final = 253
"""Files that one message can carry (SCM_MAX_FD)."""
ABOVE: Final = 512
"""Descriptors from here on are no program's: where its files are while their own numbers are being freed."""

# Without `site`, which takes as long as all the rest.
CLIENT: Final = """#!{python} -SEs
import array, json, os, signal, socket, sys

fds = [fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{fd}}")]
server = socket.socket(socket.AF_UNIX)
server.connect({socket!r})
program = {{"command": sys.argv, "environment": dict(os.environ), "directory": os.getcwd(), "fds": fds}}
text = json.dumps(program).encode()
files = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
server.sendmsg([len(text).to_bytes(8, "little")], [files])
server.sendall(text)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _frame: server.send(bytes([number])))
status = int(server.recv(16) or -signal.SIGKILL)
if status < 0 and status != -signal.SIGKILL:
    signal.signal(-status, signal.SIG_DFL)
if status < 0:
    os.kill(os.getpid(), -status)
os._exit(status)
"""


class WarmPython:
    """The process that forks, and the executable file that reaches it."""

    def __init__(self, directory: Path) -> None:
        path = directory / "python"
        address = str(directory / "socket")
        environment = {**os.environ, **SAME, "PYTHONPATH": os.path.dirname(__file__)}
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            self._server = subprocess.Popen(
                [sys.executable, "-c", f"import warm_python; warm_python.serve({listener.fileno()})"],
                stdin=subprocess.PIPE, env=environment, pass_fds=[listener.fileno()],
            )  # fmt: skip
        path.write_text(CLIENT.format(python=sys.executable, socket=address))
        path.chmod(0o755)
        self.path = str(path)

    def close(self) -> None:
        assert self._server.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # Its end alone would not do: a process that was forked here meanwhile has the pipe too.
            os.write(self._server.stdin.fileno(), b"\n")
        self._server.stdin.close()
        try:
            self._server.wait(END_S)
        finally:
            self._server.kill()
            self._server.wait()


def serve(listener_fd: int) -> NoReturn:
    """Fork a program for each client, until there is a line in stdin, or its end."""
    for name in MODULES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"
    sys.path.remove(os.environ.pop("PYTHONPATH"))
    gc.freeze()  # a collection in a program would copy every page of torch's objects
    with socket.socket(fileno=listener_fd) as listener:
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                _supervise(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)
    os._exit(0)  # taking apart what is frozen would only be reported as leaks


def _supervise(client: socket.socket) -> NoReturn:
    """Fork the program, pass signals on to it, and its status back."""
    data, messages, _, _ = client.recvmsg(8, socket.CMSG_SPACE(FILES_MAX * 4))
    files = array.array("i")
    for _, _, numbers in messages:
        files.frombytes(numbers)
    (size,) = struct.unpack("<Q", data)
    with client.makefile("rb", buffering=0) as stream:
        text = b""
        while len(text) < size:
            text += stream.read(size - len(text)) or b""
    pid = os.fork()
    if not pid:
        program = json.loads(text)
        _take_files(files, program["fds"])
        _leave(_status_of(program))
    ended = os.pidfd_open(pid)
    while ended not in select.select([client, ended], [], [])[0]:
        numbers = client.recv(16)
        for number in numbers or [signal.SIGKILL]:  # none: the client was killed
            os.kill(pid, number)
        if not numbers:
            break
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        client.sendall(str(status).encode())
    os._exit(0)


def _take_files(files: "array.array[int]", numbers: list[int]) -> None:
    """Give the client's files their numbers, and close all others."""
    assert max(numbers) < ABOVE
    above = [fcntl.fcntl(each, fcntl.F_DUPFD, ABOVE) for each in files]
    os.closerange(0, ABOVE)
    for each, number in zip(above, numbers, strict=True):
        os.dup2(each, number)
    os.closerange(ABOVE, max(above) + 1)


def _status_of(program: dict[str, Any]) -> int:
    """Run it, and report what leaves it as the interpreter does."""
    try:
        _run(program)
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001 (the top of a program)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _leave(status: int) -> NoReturn:
    """End as the interpreter does, but take nothing apart: that would copy every page of torch's objects."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the program may have closed it
            stream.flush()
    os._exit(status)


def _run(program: dict[str, Any]) -> None:
    """Do what `python ARGUMENTS` does."""
    sys.executable, *arguments = program["command"]
    multiprocessing.set_executable(sys.executable)
    os.environ.clear()
    os.environ.update(program["environment"] | SAME)
    os.chdir(program["directory"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    while arguments[0] in ("-u", "-B"):
        sys.stdout.reconfigure(write_through=arguments.pop(0) == "-u")
    match arguments:
        case ["-c", code, *_]:
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        case ["-m", name, *_]:
            sys.argv = arguments[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case [script, *_]:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
            runpy.run_path(script, run_name="__main__")
