"""Clients that come, stay silent and go."""

from dataclasses import replace

import pytest

from luciola.errors import Busy, InvalidArgument, PermissionDenied
from luciola.mgmtd import sessions as module
from luciola.mgmtd.sessions import Sessions
from luciola.wire import CLIENT, Identity
from luciola.wire.credentials import Limits
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.common_pb2 import Claims

WHO = Identity(role=Claims.TRUSTED, uid=5, gid=6, groups=(), token=b"id")


def request(client: int = 7, **fields) -> pb.ExtendClientRequest:
    return pb.ExtendClientRequest(
        **{"client": client, "host": "h", "kind": pb.NODE_MOUNT, "pid": 3, **fields}
    )


def listed(sessions: Sessions, now_s: float) -> list[int]:
    return [session.client for session in sessions.list(now_s=now_s, unix_ms=0).clients]


def test_client_is_alive_until_it_is_silent_for_too_long():
    sessions = Sessions(timeout_s=60, now_s=0)
    sessions.extend(request(), WHO, now_s=1, unix_ms=1000)
    sessions.extend(request(), WHO, now_s=30, unix_ms=30_000)
    assert listed(sessions, 89) == [7]
    session = sessions.list(now_s=89, unix_ms=0).clients[0]
    assert (session.host, session.kind, session.pid, session.last_seen_unix_ms) == (
        "h",
        pb.NODE_MOUNT,
        3,
        30_000,
    )
    assert listed(sessions, 90) == []


def test_leaving_client_is_forgotten_at_once():
    sessions = Sessions(timeout_s=60, now_s=0)
    sessions.extend(request(), WHO, now_s=1, unix_ms=1)
    sessions.extend(request(leaving=True), WHO, now_s=2, unix_ms=2)
    assert listed(sessions, 2) == []


def test_no_client_counts_as_dead_before_all_could_report():
    sessions = Sessions(timeout_s=60, now_s=0)
    assert sessions.list(now_s=59, unix_ms=0).bootstrapping
    assert not sessions.list(now_s=60, unix_ms=0).bootstrapping


def test_another_process_with_the_same_id_is_refused():
    sessions = Sessions(timeout_s=60, now_s=0)
    sessions.extend(request(), WHO, now_s=1, unix_ms=1)
    with pytest.raises(InvalidArgument, match="another process"):
        sessions.extend(request(pid=4), WHO, now_s=1, unix_ms=1)
    with pytest.raises(InvalidArgument, match="not 0"):
        sessions.extend(request(client=0), WHO, now_s=1, unix_ms=1)
    with pytest.raises(InvalidArgument, match="at most"):
        sessions.extend(request(client=8, description="x" * 300), WHO, now_s=1, unix_ms=1)


def test_number_of_clients_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "CLIENTS_MAX", 2)
    sessions = Sessions(timeout_s=60, now_s=0)
    for client in (1, 2):
        sessions.extend(request(client), WHO, now_s=1, unix_ms=1)
    with pytest.raises(Busy):
        sessions.extend(request(3), WHO, now_s=1, unix_ms=1)
    sessions.extend(request(2), WHO, now_s=2, unix_ms=2)


def test_one_user_with_many_clients_leaves_room_for_others(monkeypatch):
    monkeypatch.setattr(module, "CLIENTS_MAX", 800)
    sessions = Sessions(timeout_s=60, now_s=0)
    numbers = iter(range(1, 10_000))

    def fill(who: Identity, count: int = 800) -> int:
        for taken in range(count):
            try:
                sessions.extend(request(next(numbers)), who, now_s=1, unix_ms=1)
            except Busy as busy:
                assert str(taken) in str(busy)
                return taken
        return count

    honest = [replace(WHO, uid=uid) for uid in range(100, 104)]
    assert fill(WHO) == 700
    assert [fill(each, 5) for each in honest] == [5] * 4
    assert fill(WHO) == 0
    sessions.extend(request(1), WHO, now_s=50, unix_ms=2)
    sessions.expire(now_s=70)
    assert fill(WHO, 500) == 500, "places of clients that are gone are free"


def test_client_is_listed_with_its_release_and_the_token_that_it_showed():
    sessions = Sessions(timeout_s=60, now_s=0)
    sessions.extend(request(release="1.2"), WHO, now_s=1, unix_ms=1)
    reply = sessions.list(now_s=2, unix_ms=2000)
    (session,) = reply.clients
    assert (session.release, session.role, session.uid, session.token) == ("1.2", Claims.TRUSTED, 5, b"id")
    assert reply.unix_ms == 2000


def test_client_of_one_token_is_neither_extended_nor_ended_by_another():
    sessions = Sessions(timeout_s=60, now_s=0)
    sessions.extend(request(), WHO, now_s=1, unix_ms=1)
    others = (replace(WHO, uid=1001), replace(WHO, role=CLIENT), replace(WHO, limits=Limits(read_only=True)))
    for other in (*others, replace(WHO, limits=Limits(root=5))):
        for leaving in (False, True):
            with pytest.raises(PermissionDenied, match="another token"):
                sessions.extend(request(leaving=leaving), other, now_s=1, unix_ms=1)
    assert listed(sessions, 2) == [7]
