"""Who changed the cluster, and what was refused: one JSON object a line, in files of each process.

    DIR/NAME.changes    what administrators asked for, and what lets machines in: the methods that are `audited`
    DIR/NAME.refused    callers without a valid token, and requests that their role may not make

A line has `time` (ISO 8601, UTC), `by` (the process), `what`, `outcome` ("begun", "done", "failed", "refused"), `why`
where it is not done, `who` ({role, uid, token}; null for a stranger), `host` of the caller, and `request`. Tokens are
named by their ids, which open nothing. Strangers can fill the second file, not the first: both are kept short on
their own. A line is written before the answer, by one `write`: it outlives the process, not a loss of power.
"""

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Final, TypeAlias, cast

from google.protobuf.message import Message

from ..errors import Error
from .authority import ID_BYTES_MAX
from .credentials import Identity
from .methods import Answer, AnyMethod, Bound, Handler, Sent
from .pb.common_pb2 import Claims
from .preserialized import Preserialized

log = logging.getLogger(__name__)

CHANGES: Final = "changes"
REFUSED: Final = "refused"
FILE_BYTES_MAX: Final = 8 << 20  # about 30,000 lines
OLDER_KEPT: Final = 4  # files, of each of the two: NAME.changes.1 is the youngest
REQUEST_BYTES_MAX: Final = 2048  # of a request, serialized: a longer one is named by its length
REFUSALS_PER_S: Final = 10  # more are counted: a flood costs as many lines
TEXT_MAX: Final = 500  # characters of what a stranger may choose

Entry: TypeAlias = dict[str, object]
_Unary: TypeAlias = Callable[[Message, Identity], Answer[Message]]

caller_host: Final[ContextVar[str]] = ContextVar("caller_host", default="")
"""Where the caller is that the handler which asks was called by; empty if that is not known."""


class AuditLog:
    """What one process writes down, to `directory`, which is made; `name`: of the process, as "storage-2".

    Without a directory nothing is written. One that cannot be written to is said in the log, and stops no request.
    """

    def __init__(
        self,
        directory: Path | None,
        name: str,
        *,
        file_bytes_max: int = FILE_BYTES_MAX,
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._name = name
        self._file_bytes_max = file_bytes_max
        self._now_unix_s = now_unix_s
        self._second = 0  # in which refusals are counted
        self._refusals = 0
        self._unwritten = 0
        self._is_broken = False

    def watched(self, bound: Iterable[Bound]) -> tuple[Bound, ...]:
        """Return the same methods; calls of those that are `audited` are written down, and how they end."""
        return tuple(
            Bound(each.method, self._watched(each.method, each.handler)) if each.method.audited else each
            for each in bound
        )

    def changed(  # noqa: PLR0913 (the fields of a line)
        self, what: str, outcome: str, *, who: Entry | None, request: object, why: str = "", host: str = ""
    ) -> None:
        """Write down a change: `what` was asked for, and how that ended."""
        self._write(CHANGES, self._entry(what, outcome, who=who, why=why, host=host, request=request))

    def refused(self, what: str, why: str, *, host: str, identity: Identity | None = None) -> None:
        """Write down that a caller was not let in, or may not do that; no more than so many a second."""
        second = int(self._now_unix_s())
        if second != self._second:
            self._second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals > REFUSALS_PER_S:
            self._unwritten += 1
            return
        who = None if identity is None else describe(identity)
        entry = self._entry(what[:TEXT_MAX], "refused", who=who, why=why[:TEXT_MAX], host=host, request=None)
        if self._unwritten:
            entry["unwritten_before"], self._unwritten = self._unwritten, 0
        self._write(REFUSED, entry)

    def _watched(self, method: AnyMethod, handler: Handler) -> Handler:
        def begin(request: Message, identity: Identity) -> Answer[Message]:
            try:
                reply = cast("_Unary", handler)(request, identity)
            except Exception as error:
                self._ended(method, request, identity, error)
                raise
            if method.streams:
                self._outcome(method, request, identity, "begun")
            elif isinstance(reply, (Message, Preserialized)):
                self._ended(method, request, identity)
            else:
                return self._awaited(method, request, identity, reply)
            return reply

        return begin

    async def _awaited(
        self, method: AnyMethod, request: Message, identity: Identity, reply: Awaitable[Sent[Message]]
    ) -> Sent[Message]:
        try:
            result = await reply
        except BaseException as error:
            self._ended(method, request, identity, error)
            raise
        self._ended(method, request, identity)
        return result

    def _ended(
        self, method: AnyMethod, request: Message, identity: Identity, error: BaseException | None = None
    ) -> None:
        if error is None:
            self._outcome(method, request, identity, "done")
        else:
            why = str(error) if isinstance(error, Error) else type(error).__name__
            self._outcome(method, request, identity, "failed", why)

    def _outcome(
        self, method: AnyMethod, request: Message, identity: Identity, outcome: str, why: str = ""
    ) -> None:
        self.changed(
            f"{method.service}.{method.name}",
            outcome,
            who=describe(identity),
            request=summary(request),
            why=why[:TEXT_MAX],
            host=caller_host.get(),
        )

    def _entry(  # noqa: PLR0913 (the fields of a line)
        self, what: str, outcome: str, *, who: Entry | None, why: str, host: str, request: object
    ) -> Entry:
        now = self._now_unix_s()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        entry: Entry = {"time": stamp, "by": self._name, "what": what, "outcome": outcome}
        if why:
            entry["why"] = why
        entry["who"] = who
        if host:
            entry["host"] = host
        if request is not None:
            entry["request"] = request
        return entry

    def _write(self, kind: str, entry: Entry) -> None:
        if self._directory is None:
            return
        line = json.dumps(entry, default=str).encode() + b"\n"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _append(self._directory / f"{self._name}.{kind}", line, self._file_bytes_max)
        except OSError as error:
            if not self._is_broken:
                log.error("the audit log cannot be written, and requests are served without: %s", error)  # noqa: TRY400 (an operating error)
            self._is_broken = True
        else:
            self._is_broken = False


def _append(path: Path, line: bytes, file_bytes_max: int) -> None:
    """Add a line to the file; one that is long enough becomes PATH.1, and those before it go one further."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, line)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size >= file_bytes_max:
        for number in reversed(range(OLDER_KEPT)):
            older = path.with_name(f"{path.name}.{number}") if number else path
            with suppress(FileNotFoundError):
                older.replace(path.with_name(f"{path.name}.{number + 1}"))


def describe(identity: Identity) -> Entry:
    """Return who that is, as a line of the log says it."""
    return {
        "role": Claims.Role.Name(identity.role).lower(),
        "uid": identity.uid,
        "token": identity.token.hex(),
    }


def summary(request: Message) -> object:
    """Return what a request says, or how long it is. No request of an administrator carries a secret."""
    if request.ByteSize() > REQUEST_BYTES_MAX:
        return {"bytes": request.ByteSize()}
    return _plain(request)


def _plain(value: object) -> object:
    """Return a field's value for JSON: bytes are ids, as hex digits, or too long to be shown."""
    if isinstance(value, Message):
        return {field.name: _plain(each) for field, each in value.ListFields()}
    if isinstance(value, bytes):
        return value.hex() if len(value) <= ID_BYTES_MAX else f"{len(value)} bytes"
    if isinstance(value, str | int | float):
        return value
    return [_plain(each) for each in cast("Iterable[object]", value)]


def read_entries(directory: Path, kinds: Iterable[str]) -> Iterator[Mapping[str, object]]:
    """Yield all entries of these kinds in a directory, by time. What is no line of this log is left out.

    Raises: OSError if a file cannot be read.
    """
    found: list[Mapping[str, object]] = []
    for kind in kinds:
        older = (
            path
            for number in reversed(range(1, OLDER_KEPT + 1))
            for path in directory.glob(f"*.{kind}.{number}")
        )
        for path in (*older, *directory.glob(f"*.{kind}")):
            for line in path.read_bytes().splitlines():
                with suppress(ValueError, RecursionError):  # a line that a full disk cut, or another's
                    entry = json.loads(line)
                    if isinstance(entry, dict) and isinstance(entry.get("time"), str):
                        found.append(entry)
    found.sort(key=lambda entry: str(entry["time"]))
    yield from found


NO_AUDIT: Final = AuditLog(None, "")

__all__ = [
    "CHANGES",
    "NO_AUDIT",
    "REFUSED",
    "AuditLog",
    "caller_host",
    "describe",
    "read_entries",
    "summary",
]
