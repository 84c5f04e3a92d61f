"""Changes below a directory, as they are committed.

    with fs.watch("/datasets") as watch:
        for change in watch:                      # waits for the next one
            print(change.kind, change.path)
            save(change.position)                 # fs.watch("/datasets", after=saved) continues behind it

    Follower    asks the metadata service, and after a take-over the next one, with the position that it has come to
    Watch       performs that with blocking calls
    AsyncWatch  performs that in asyncio

A `Follower` does no I/O: it yields what to do, and is sent the answer.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self, cast

from ..closing import Closing
from ..errors import Error, InvalidArgument, NotFound, Unauthenticated, Unavailable
from ..wire.cluster import FILE_NAME, load_cluster
from .connection import Parameters, is_address, naming

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..wire.methods import AnyMethod
    from ..wire.pb.meta_pb2 import NamespaceChange, WatchReply
    from ..wire.rpc import RpcClient

WAIT_S: Final = 20.0  # of one question; a watcher that sees nothing learns a newer position this often
CALL_S: Final = 20.0  # beyond that: the machine may be overloaded
RETRY_S: Final = 0.2  # between attempts: a take-over takes seconds

Kind = Literal["create", "link", "rename", "remove", "change"]
TYPES: Final = (
    "unknown",
    "file",
    "directory",
    "symlink",
    "fifo",
    "socket",
    "character device",
    "block device",
)


class TooOld(NotFound):
    """The changes after a position are not known any more: list the directory again, and watch from now on."""


@dataclass(frozen=True, slots=True)
class Change:
    """One committed change.

    create  a file, directory, … was made at `path`
    link    an existing file got one more name, `path`
    rename  from `old_path` to `path`; None for the one that is not below the directory: it left, or came from elsewhere
    remove  the name `path` went; that of a directory with all that was below it
    change  bytes, length, owner, permissions, times or extended attributes of what is at `path`; None if its name is
            not known
    """

    kind: Kind
    path: str | None
    old_path: str | None
    inode: int  # 0: not known
    type: str
    replaced: int  # rename: the inode that had the name, and has lost it; 0: none
    exchanged: bool  # rename: `replaced` has got `old_path`
    position: str  # to continue after this change


@dataclass(frozen=True, slots=True)
class Call:
    """To be sent."""

    address: str
    method: "AnyMethod"
    request: "Message"
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """To be waited for."""

    duration_s: float


Step = Call | Pause
Steps = Generator[Step, "Message | None", "Sequence[Change]"]


class Follower:
    """Where a watcher is. `managers`: gRPC addresses of mgmtd. `patience_s`: how long it tries without an answer."""

    def __init__(
        self,
        managers: Sequence[str],
        path: str,
        *,
        after: str | None,
        recursive: bool,
        patience_s: float,
    ) -> None:
        assert managers, "a cluster has a manager"
        self._managers = managers
        self.path = path
        self._recursive = recursive
        self._patience_s = patience_s
        self._address = ""  # of the service that answered last
        self._directory = 0  # the inode, once it is known
        self.position = after or ""
        self.has_ended = False  # the directory was removed

    def steps(self, *, wait_s: float) -> Steps:
        """Return the next changes, or none after `wait_s`.

        Raises: NotFound, NotADirectory, PermissionDenied; TooOld; Unsupported; Unavailable, Timeout.
        """
        give_up_s = time.monotonic() + wait_s + self._patience_s
        while True:
            try:
                return (yield from self._ask(wait_s))
            except Error as error:
                if "too_old" in error.fields:
                    raise TooOld(error.message, too_old=True) from error
                self._address = ""
                if not error.retryable or time.monotonic() > give_up_s:
                    raise
            yield Pause(RETRY_S)

    def _ask(self, wait_s: float) -> Steps:
        from ..wire.methods import Meta
        from ..wire.pb import meta_pb2 as pb
        from ..wire.pb.common_pb2 import Caller

        if not self._address:
            self._address = yield from self._find()
        user = Caller(uid=os.geteuid(), gid=os.getegid(), groups=os.getgroups())
        by_name = pb.Path(path=os.fsencode(self.path))
        request = pb.WatchRequest(
            user=user,
            path=pb.Path(at=self._directory) if self._directory else by_name,
            after=self.position,
            children_only=not self._recursive,
            wait_ms=round(wait_s * 1000),
        )
        reply = yield Call(self._address, cast("AnyMethod", Meta.watch), request, wait_s + CALL_S)
        assert isinstance(reply, pb.WatchReply), "the answer to a question is its reply"
        return self._take(reply)

    def _take(self, reply: "WatchReply") -> Sequence[Change]:
        self._directory = reply.directory
        self.position = reply.position
        changes = []
        for each in reply.changes:
            changes.append(self._change(each))
            if changes[-1].kind == "remove" and not each.path:
                self.has_ended = True
                self.position = each.position or reply.position
                break
        return changes

    def _change(self, change: "NamespaceChange") -> Change:
        from ..wire.pb import meta_pb2 as pb

        kinds: dict[int, Kind] = {
            pb.CHANGE_CREATE: "create",
            pb.CHANGE_LINK: "link",
            pb.CHANGE_RENAME: "rename",
            pb.CHANGE_REMOVE: "remove",
            pb.CHANGE_ATTRIBUTES: "change",
        }
        return Change(
            kind=kinds[change.kind],
            path=self._full(change.path) if change.HasField("path") else None,
            old_path=self._full(change.old_path) if change.HasField("old_path") else None,
            inode=change.inode,
            type=TYPES[change.type],
            replaced=change.replaced,
            exchanged=change.exchanged,
            position=change.position,
        )

    def _full(self, below: bytes) -> str:
        return os.path.join(self.path, os.fsdecode(below)) if below else self.path

    def _find(self) -> Generator[Step, "Message | None", str]:
        """Return the address of the service that leads."""
        from ..wire.methods import Mgmtd
        from ..wire.pb.mgmtd_pb2 import CONNECTED, NODE_META, GetRoutingRequest, Routing

        failure: Error = Unavailable("no metadata service is connected")
        for manager in self._managers:
            try:
                routing = yield Call(
                    manager, cast("AnyMethod", Mgmtd.get_routing), GetRoutingRequest(), CALL_S
                )
            except Error as error:
                if not error.retryable:
                    raise
                failure = error
                continue
            assert isinstance(routing, Routing), "the answer to a question is its reply"
            found = [
                node
                for node in routing.nodes
                if node.kind == NODE_META and node.status == CONNECTED and node.grpc_address
            ]
            if found:
                return max(found, key=lambda node: node.epoch).grpc_address
        raise failure


class _Pending:
    """Changes that were received, and are handed out one by one."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._pending: deque[Change] = deque()
        self._position = follower.position

    @property
    def position(self) -> str:
        """To continue after what was handed out so far."""
        return self._position

    def _receive(self, changes: Sequence[Change]) -> None:
        self._pending.extend(changes)
        if not self._pending:
            self._position = self._follower.position

    def _hand_out(self) -> Change:
        change = self._pending.popleft()
        self._position = change.position if self._pending else self._follower.position
        return change

    def _hand_out_all(self) -> list[Change]:
        changes = list(self._pending)
        self._pending.clear()
        self._position = self._follower.position
        return changes


class Watch(_Pending, Closing):
    """Made by `FileSystem.watch`. An iterator that waits for the next change; it ends when the directory is removed."""

    def __init__(self, parameters: Parameters, follower: Follower) -> None:
        from ..wire import rpc

        super().__init__(follower)
        self._token = parameters.token_of_calls()
        self._new_client = rpc.RpcClient
        self._tls = parameters.tls()
        self._clients: dict[str, RpcClient] = {}
        self._is_closed = False

    def read(self, wait_s: float = 0.0) -> list[Change]:
        """Return the changes that are there; if there are none, wait up to `wait_s` for some.

        Raises: TooOld; Unavailable or Timeout if no service has answered for `deadline_ms`.
        """
        if self._is_closed:
            raise InvalidArgument("this watch is closed")
        if not self._pending and not self._follower.has_ended:
            with naming(self._follower.path):
                self._receive(self._perform(self._follower.steps(wait_s=wait_s)))
        return self._hand_out_all()

    def __iter__(self) -> Iterator[Change]:
        return self

    def __next__(self) -> Change:
        while not self._pending:
            if self._is_closed or self._follower.has_ended:
                raise StopIteration
            with naming(self._follower.path):
                self._receive(self._perform(self._follower.steps(wait_s=WAIT_S)))
        return self._hand_out()

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed = True
        self._pending.clear()
        clients, self._clients = self._clients, {}
        for client in clients.values():
            client.close()

    def begin(self) -> None:
        """Learn the position from which on changes are seen."""
        with naming(self._follower.path):
            self._receive(self._perform(self._follower.steps(wait_s=0)))

    def _perform(self, steps: Steps) -> Sequence[Change]:
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._do(step)
                except Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _do(self, step: Step) -> "Message | None":
        if isinstance(step, Pause):
            time.sleep(step.duration_s)
            return None
        client = self._clients.get(step.address)
        if client is None:
            client = self._clients[step.address] = self._new_client(step.address, self._token, tls=self._tls)
        call = partial(client.call, step.method, step.request, timeout_s=step.timeout_s)
        try:
            return call()
        except Unauthenticated:
            if not self._token.is_replaced():
                raise
        return call()


class AsyncWatch(_Pending):
    """Made by `AsyncFileSystem.watch`. As `Watch`, for asyncio."""

    def __init__(self, parameters: Parameters, follower: Follower) -> None:
        from ..wire.rpc import RpcClients

        super().__init__(follower)
        self._token = parameters.token_of_calls()
        self._clients = RpcClients(self._token, tls=parameters.tls())
        self._is_closed = False

    async def read(self, wait_s: float = 0.0) -> list[Change]:
        """As `Watch.read`."""
        if self._is_closed:
            raise InvalidArgument("this watch is closed")
        if not self._pending and not self._follower.has_ended:
            with naming(self._follower.path):
                self._receive(await self._perform(self._follower.steps(wait_s=wait_s)))
        return self._hand_out_all()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._is_closed or self._follower.has_ended:
                raise StopAsyncIteration
            with naming(self._follower.path):
                self._receive(await self._perform(self._follower.steps(wait_s=WAIT_S)))
        return self._hand_out()

    async def close(self) -> None:
        """Watch no longer."""
        self._is_closed = True
        self._pending.clear()
        await self._clients.close()

    async def begin(self) -> None:
        """Learn the position from which on changes are seen."""
        with naming(self._follower.path):
            self._receive(await self._perform(self._follower.steps(wait_s=0)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _perform(self, steps: Steps) -> Sequence[Change]:
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._do(step)
                except Error as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _do(self, step: Step) -> "Message | None":
        if isinstance(step, Pause):
            await asyncio.sleep(step.duration_s)
            return None
        call = partial(self._clients.call, step.address, step.method, step.request, timeout_s=step.timeout_s)
        try:
            return await call()
        except Unauthenticated:
            if not self._token.is_replaced():
                raise
        return await call()


def follower_of(
    parameters: Parameters,
    path: str,
    *,
    after: str | None,
    recursive: bool,
    manager: str | None,
) -> Follower:
    """Return a follower of the cluster's changes. Raises: InvalidArgument without the gRPC address of a manager."""
    if manager is None:
        if is_address(parameters.address):
            raise InvalidArgument(
                "watching a cluster at an address needs manager=HOST:PORT: mgmtd_grpc in its cluster.json"
            )
        manager = load_cluster(Path(parameters.address) / FILE_NAME).mgmtd_grpc
    return Follower(
        manager.split(","),
        os.path.join("/", path),
        after=after,
        recursive=recursive,
        patience_s=parameters.config.deadline_ms / 1000,
    )


__all__ = ["AsyncWatch", "Call", "Change", "Follower", "Kind", "Pause", "TooOld", "Watch", "follower_of"]
