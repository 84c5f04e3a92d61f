"""A function in a child process: what it returns, or at once how it failed. One that hangs says where."""

import faulthandler
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

ANSWER_S = 120  # on a busy machine; twice that is less than the time limit of a test
STACKS_S = 20


class Child:
    """A process that calls a function. `method`: fork or spawn, for which all of it can be pickled.

    with Child(read, path, method="spawn") as child:
        assert child.result() == b"bytes"
    """

    def __init__(self, function: Callable[..., object], *arguments: object, method: str = "fork") -> None:
        context: Any = multiprocessing.get_context(method)
        self._answer, sender = context.Pipe(duplex=False)
        self._process = context.Process(target=_call, args=(sender, function, arguments))
        with warnings.catch_warnings():
            # Python warns of forks of processes with threads: what must work in spite of them is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._process.start()
        # The child has the only end for writing: one that dies is noticed.
        sender.close()

    def result(self) -> Any:
        """What the function returned, once the process has ended. Raises: AssertionError if it failed or hangs."""
        if not self._answer.poll(ANSWER_S):
            self._show_stacks()
            raise AssertionError(f"no answer of a child within {ANSWER_S} s: its stacks are on stderr")
        try:
            value, error = self._answer.recv()
        except EOFError:
            self._process.join()
            raise AssertionError(
                f"a child died without an answer: exit code {self._process.exitcode}"
            ) from None
        self._process.join(ANSWER_S)
        if self._process.is_alive():
            self._show_stacks()
            raise AssertionError("a child has answered and does not end: its stacks are on stderr")
        if error is not None:
            raise AssertionError(f"in a child: {error}")
        assert self._process.exitcode == 0, self._process.exitcode
        return value

    def _show_stacks(self) -> None:
        os.kill(self._process.pid, signal.SIGUSR1)
        self._process.join(STACKS_S)  # the signal ends it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answer.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()


def _call(sender: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    # Not dump_traceback_later: pytest's own has a thread that is not here, and Python would wait for it.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)
    try:
        answer = (function(*arguments), None)
    except BaseException:  # noqa: BLE001 (the parent judges)
        answer = (None, traceback.format_exc())
    sender.send(answer)
