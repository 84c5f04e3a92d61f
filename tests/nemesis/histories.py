"""Operations as programs recorded them: one file a program, one line when a call begins and one when it returns.

    {"id": 7, "key": "12", "kind": "write", "argument": 70007, "invoked_ns": 1000}
    {"id": 7, "result": null, "returned_ns": 2000}

Moments are of CLOCK_MONOTONIC. A call that has not returned, or that failed in a way which does not say whether it had
an effect, has no second line: it may take effect at any later moment, or never. A read that failed is left out.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

EVERY_KEY: Final = "*"  # of an operation on all objects at once, as a sync of the file that holds them


@dataclass(frozen=True, slots=True)
class Operation:
    """One call. `returned_ns` is None while its outcome is unknown, and `result` means nothing then."""

    process: str
    key: str
    kind: str
    argument: Any
    result: Any
    invoked_ns: int
    returned_ns: int | None

    def precedes(self, other: "Operation") -> bool:
        """Whether it had returned when the other one began."""
        return self.returned_ns is not None and self.returned_ns < other.invoked_ns


class Recorder:
    """The history of one life of a program, line by line: what is written survives the end of the program.

    A program that was killed and runs again has another life, the first one that has no file yet. Process ids would not
    do: they come again within an hour.
    """

    def __init__(self, path: Path) -> None:
        self.life = 1
        while True:
            try:
                self._file = os.open(
                    path.with_suffix(f".{self.life}"),
                    os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND,
                    0o600,
                )
                break
            except FileExistsError:
                self.life += 1
        self._next = 0

    def invoke(self, key: str, kind: str, argument: Any = None) -> int:
        """The call begins now. Returns its number."""
        self._next += 1
        self._write(id=self._next, key=key, kind=kind, argument=argument, invoked_ns=time.monotonic_ns())
        return self._next

    def complete(self, number: int, result: Any = None) -> None:
        """The call has returned."""
        self._write(id=number, result=result, returned_ns=time.monotonic_ns())

    def forget(self, number: int) -> None:
        """The call has failed without an effect."""
        self._write(id=number, forgotten=True)

    def note_error(self, number: int, error: OSError) -> None:
        """Why the call failed, for the report."""
        self._write(error=error.errno, text=str(error), id=number, at_ns=time.monotonic_ns())

    def _write(self, **fields: Any) -> None:
        os.write(self._file, json.dumps(fields).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended with an error, after `after_s` seconds."""

    process: str
    kind: str
    errno: int
    text: str
    began_ns: int
    after_s: float


def read(path: Path) -> tuple[list[Operation], list[Failure]]:
    """What one program has recorded."""
    begun: dict[int, Operation] = {}
    failures = []
    for line in path.read_text().splitlines():
        table = json.loads(line)
        number = table["id"]
        if "invoked_ns" in table:
            begun[number] = Operation(
                path.stem, table["key"], table["kind"], table["argument"], None, table["invoked_ns"], None
            )
        elif "returned_ns" in table:
            begun[number] = replace(begun[number], result=table["result"], returned_ns=table["returned_ns"])
        elif "error" in table:
            known = begun[number]
            after_s = (table["at_ns"] - known.invoked_ns) / 1e9
            failures.append(
                Failure(path.stem, known.kind, table["error"], table["text"], known.invoked_ns, after_s)
            )
        else:
            del begun[number]
    return list(begun.values()), failures


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """The history of each object, with the operations on all of them in each."""
    everywhere = []
    found: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        (everywhere if operation.key == EVERY_KEY else found[operation.key]).append(operation)
    for history in found.values():
        first = min(each.invoked_ns for each in history)
        last = max(each.returned_ns or each.invoked_ns for each in history)
        history += [
            each for each in everywhere if each.invoked_ns <= last and (each.returned_ns or last) >= first
        ]
    return dict(found)


def until(operations: Iterable[Operation], moment_ns: int) -> list[Operation]:
    """The history as it was known at that moment: what had not returned has an unknown outcome."""
    return [
        each
        if each.returned_ns is not None and each.returned_ns <= moment_ns
        else replace(each, returned_ns=None)
        for each in operations
        if each.invoked_ns <= moment_ns
    ]
