"""Clients that are alive. Meta asks who they are before it ends the write sessions of those that are not."""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from ..errors import Busy, InvalidArgument, PermissionDenied
from ..ids import ClientId
from ..shares import may_take
from ..wire import Identity
from ..wire.credentials import Principal
from ..wire.pb import mgmtd_pb2 as pb

CLIENTS_MAX: Final = 100_000  # of which each user has a share
TEXT_BYTES_MAX: Final = 256  # of a host name or description


@dataclass(slots=True)
class Session:
    """One client process. `identity`: of the token that it showed last."""

    host: str
    description: str
    kind: int
    started_unix_ms: int
    pid: int
    release: str
    identity: Identity
    seen_s: float
    seen_unix_ms: int


class Sessions:
    """Clients that extended their session within `timeout_s`. In memory only: they do so again after a restart."""

    def __init__(self, *, timeout_s: float, now_s: float) -> None:
        assert timeout_s > 0, "a session lasts"
        self._timeout_s = timeout_s
        self._started_s = now_s
        self._sessions: dict[ClientId, Session] = {}
        self._counts: Counter[Principal] = Counter()  # of each user's clients

    def extend(
        self, request: pb.ExtendClientRequest, identity: Identity, *, now_s: float, unix_ms: int
    ) -> None:
        """The client of `identity` is alive, or is leaving.

        Raises: InvalidArgument, Busy; PermissionDenied for a client of another owner.
        """
        client = ClientId(request.client)
        if client == 0:
            raise InvalidArgument("a client has an id, which is not 0")
        if request.kind not in (pb.NODE_CLIENT, pb.NODE_MOUNT):
            raise InvalidArgument("a client is a program or a mount")
        if max(len(request.host), len(request.description), len(request.release)) > TEXT_BYTES_MAX:
            raise InvalidArgument(f"host, description and release have at most {TEXT_BYTES_MAX} characters")
        known = self._sessions.get(client)
        if known is not None and known.identity.principal != identity.principal:
            raise PermissionDenied(f"client {client:#x} belongs to another token")
        if known is not None and (known.pid, known.started_unix_ms) != (request.pid, request.started_unix_ms):
            raise InvalidArgument(f"client {client:#x} is another process: ids are random, take a new one")
        if request.leaving:
            self._forget(client)
            return
        if known is None and not self._has_room(identity.principal):
            self.expire(now_s=now_s)
            if not self._has_room(identity.principal):
                raise Busy(
                    f"{self._counts[identity.principal]} of at most {CLIENTS_MAX} clients are this user's; "
                    "try again when some have ended"
                )
        if known is None:
            self._counts[identity.principal] += 1
        assert known is None or now_s >= known.seen_s, "the clock never goes back"
        self._sessions[client] = Session(
            host=request.host,
            description=request.description,
            kind=request.kind,
            started_unix_ms=request.started_unix_ms,
            pid=request.pid,
            release=request.release,
            identity=identity,
            seen_s=now_s,
            seen_unix_ms=unix_ms,
        )

    def expire(self, *, now_s: float) -> None:
        """Forget those who have been silent for too long."""
        silent = [
            client for client, known in self._sessions.items() if now_s - known.seen_s >= self._timeout_s
        ]
        for client in silent:
            self._forget(client)

    def _has_room(self, principal: Principal) -> bool:
        return may_take(self._counts[principal], used=len(self._sessions), limit=CLIENTS_MAX)

    def _forget(self, client: ClientId) -> None:
        session = self._sessions.pop(client, None)
        if session is not None:
            self._counts[session.identity.principal] -= 1
            if not self._counts[session.identity.principal]:
                del self._counts[session.identity.principal]

    def count(self, *, now_s: float) -> int:
        """Return how many clients are alive."""
        self.expire(now_s=now_s)
        return len(self._sessions)

    def list(self, *, now_s: float, unix_ms: int) -> pb.ListClientsReply:
        """Return all of them; `bootstrapping` while some may not have extended their session yet."""
        self.expire(now_s=now_s)
        is_early = now_s - self._started_s < self._timeout_s
        reply = pb.ListClientsReply(bootstrapping=is_early, unix_ms=unix_ms)
        for client, known in self._sessions.items():
            reply.clients.add(
                client=client,
                host=known.host,
                description=known.description,
                kind=pb.NodeKind.Name(known.kind),
                started_unix_ms=known.started_unix_ms,
                last_seen_unix_ms=known.seen_unix_ms,
                pid=known.pid,
                release=known.release,
                role=known.identity.role,
                uid=known.identity.uid,
                token=known.identity.token,
            )
        return reply


__all__ = ["CLIENTS_MAX", "Session", "Sessions"]
