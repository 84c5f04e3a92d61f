"""The audit log: what is written down, by whom it was asked for, and that strangers cannot push it out."""

import asyncio
import json

import pytest

from lane_client import AsyncLaneClient
from luciola.errors import Error, InvalidArgument, PermissionDenied, Unauthenticated
from luciola.wire import LaneServer, RpcClients, RpcServer, methods
from luciola.wire.audit import CHANGES, REFUSALS_PER_S, REFUSED, AuditLog, read_entries
from luciola.wire.credentials import ADMIN, CLIENT, Limits, mint, verify
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import DumpBatch, DumpRequest, InodeReply, LookupRequest, QuarantineRequest

from .service import SECRET, bound

ADMINISTRATOR = mint(SECRET, role=ADMIN, uid=42, gid=42, groups=())
USER = mint(SECRET, role=CLIENT, uid=7, gid=7, groups=())
READ_BY_ADMINISTRATORS = {
    "Mgmtd.ListClients",
    "Mgmtd.ListConfig",
    "Mgmtd.ListRevoked",
    "Meta.ScanInodes",
    "Meta.ScanDentries",
    "Meta.ScanRemoved",
    "Meta.ScanQuarantined",
    "Meta.ListClientFiles",
    "Meta.Status",
    "Storage.ListChunks",
    "Storage.Space",
    "Storage.Status",
    "Replicas.State",
}
PARTS_OF_OTHERS = {
    "Meta.Load",
    "Mgmtd.ProcessEnded",
}  # of a load that began; of a supervisor, on each restart


class Administered:
    """Serves the methods that these tests call."""

    def lookup(self, request, identity):
        return InodeReply()

    async def quarantine(self, request, identity):
        await asyncio.sleep(0)
        if not request.delay_ms:
            raise InvalidArgument("say why")
        return Empty()

    def discard_load(self, request, identity):
        raise ZeroDivisionError("with something secret in it")

    async def dump(self, request, identity):
        yield DumpBatch()

    def __getattr__(self, name):
        return lambda request, identity: (_ for _ in ()).throw(AssertionError(name))


def entries(directory, kind):
    return list(read_entries(directory, [kind]))


def serve(directory, test, **options):
    """Runs `test(gRPC address, clients of an administrator)` beside a server that writes to `directory`."""

    async def main() -> None:
        audit = AuditLog(directory, "meta-1", **options)
        server = RpcServer(
            audit.watched(methods.bind(methods.Meta, Administered())), secret=SECRET, audit=audit
        )
        address = await server.start()
        try:
            async with RpcClients(ADMINISTRATOR) as clients:
                await test(address, clients)
        finally:
            await server.stop(grace_s=1)

    asyncio.run(main())


def test_each_method_of_administrators_is_written_down_or_only_reads():
    of_administrators = {f"{each.service}.{each.name}" for each in methods.ALL if each.role == ADMIN}
    audited = {f"{each.service}.{each.name}" for each in methods.ALL if each.audited}
    assert of_administrators - audited == READ_BY_ADMINISTRATORS | PARTS_OF_OTHERS
    assert audited - of_administrators == {"Mgmtd.ReserveNode", "Mgmtd.IssueCertificate"}
    assert not [each for each in methods.ALL if each.audited and each.lane], (
        "the lane says no host to handlers"
    )


def test_change_is_written_with_who_asked_from_where_and_how_it_ended(tmp_path):
    async def test(address, clients):
        await clients.call(address, methods.Meta.quarantine, QuarantineRequest(delay_ms=5))
        with pytest.raises(InvalidArgument):
            await clients.call(address, methods.Meta.quarantine, QuarantineRequest())
        with pytest.raises(Error):
            await clients.call(address, methods.Meta.discard_load, Empty())
        async for _ in clients.stream(address, methods.Meta.dump, DumpRequest()):
            pass
        await clients.call(address, methods.Meta.lookup, LookupRequest(parent=1, name=b"not of interest"))

    serve(tmp_path / "audit", test)
    found = entries(tmp_path / "audit", CHANGES)
    assert [(each["what"], each["outcome"], each.get("why")) for each in found] == [
        ("Meta.Quarantine", "done", None),
        ("Meta.Quarantine", "failed", "say why"),
        ("Meta.DiscardLoad", "failed", "ZeroDivisionError"),
        ("Meta.Dump", "begun", None),
    ]
    assert found[0]["request"] == {"delay_ms": 5}
    for each in found:
        assert each["who"] == {"role": "admin", "uid": 42, "token": ADMINISTRATOR.id}
        assert (each["by"], each["host"]) == ("meta-1", "127.0.0.1")
    assert entries(tmp_path / "audit", REFUSED) == []
    assert (tmp_path / "audit").stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in (tmp_path / "audit").iterdir()} == {0o600}


def test_who_is_not_let_in_is_written_down_and_no_token_is(tmp_path):
    forged = mint(bytes(32), role=ADMIN, uid=1, gid=1, groups=())
    elsewhere = mint(SECRET, uid=3, gid=3, groups=(), limits=Limits(networks=("10.9.0.0/16",)))

    async def test(address, _):
        for token, expected in (
            (forged, Unauthenticated),
            (USER, PermissionDenied),
            (elsewhere, Unauthenticated),
        ):
            async with RpcClients(token) as clients:
                method = methods.Meta.lookup if token is elsewhere else methods.Meta.quarantine
                with pytest.raises(expected):
                    await clients.call(address, method, method.request())

    serve(tmp_path, test)
    found = entries(tmp_path, REFUSED)
    assert [each["who"] and each["who"]["uid"] for each in found] == [None, 7, 3]
    assert {each["outcome"] for each in found} == {"refused"}
    assert found[1]["what"] == "/luciola.Meta/Quarantine"
    assert "may not be used from 127.0.0.1" in found[2]["why"]
    assert entries(tmp_path, CHANGES) == []
    text = b"".join(each.read_bytes() for each in tmp_path.iterdir())
    for token in (forged, USER, elsewhere, ADMINISTRATOR):
        key = token.encode().partition(".")[2]
        assert key.encode() not in text
        assert token.key.hex().encode() not in text


def test_lane_writes_down_who_is_not_let_in(tmp_path):
    async def main() -> None:
        audit = AuditLog(tmp_path, "meta-1")
        server = LaneServer(bound(Administered()), secret=SECRET, audit=audit)
        address = await server.start()
        try:
            with pytest.raises(Unauthenticated):
                async with AsyncLaneClient(address, mint(bytes(32), uid=1, gid=1, groups=())) as client:
                    await client.call(methods.Meta.lookup, LookupRequest())
        finally:
            await server.stop(grace_s=1)

    asyncio.run(main())
    (found,) = entries(tmp_path, REFUSED)
    assert (found["what"], found["who"]) == ("handshake", None)


def test_flood_of_strangers_is_counted_and_pushes_no_change_out(tmp_path):
    now = [1_000_000.25]
    audit = AuditLog(tmp_path, "mgmtd-1", file_bytes_max=20_000, now_unix_s=lambda: now[0])
    audit.changed("Mgmtd.DrainNode", "done", who=None, request={})
    for _ in range(200):
        for _ in range(REFUSALS_PER_S + 5):
            audit.refused("x" * 10_000, "y" * 10_000, host="10.0.0.1")
        now[0] += 1
    found = entries(tmp_path, REFUSED)
    assert {each.get("unwritten_before", 0) for each in found} == {0, 5}
    assert sum(each.stat().st_size for each in tmp_path.glob("*.refused*")) < 5 * 22_000
    assert [each["what"] for each in entries(tmp_path, CHANGES)] == ["Mgmtd.DrainNode"]
    assert found[-1]["time"] == "1970-01-12T13:49:59.250Z"


def test_long_file_makes_way_and_the_youngest_stay(tmp_path):
    audit = AuditLog(tmp_path, "mgmtd-1", file_bytes_max=1000)
    for number in range(200):
        audit.changed("change", "done", who=None, request={"number": number})
    numbers = [each["request"]["number"] for each in entries(tmp_path, CHANGES)]
    assert numbers == list(range(numbers[0], 200)), "in order, without a gap, up to the last"
    assert len(list(tmp_path.iterdir())) <= 5


def test_damaged_line_is_left_out(tmp_path):
    audit = AuditLog(tmp_path, "mgmtd-1")
    audit.changed("first", "done", who=None, request=None)
    with (tmp_path / "mgmtd-1.changes").open("a") as file:
        file.write('{"time": "2026-01-01T0\n[1]\n"text"\n\xff\n')
    audit.changed("second", "done", who=None, request=None)
    assert [each["what"] for each in entries(tmp_path, CHANGES)] == ["first", "second"]


def test_requests_are_served_where_nothing_can_be_written(tmp_path, caplog):
    (tmp_path / "file").write_text("")

    async def test(address, clients):
        for _ in range(2):
            await clients.call(address, methods.Meta.quarantine, QuarantineRequest(delay_ms=1))

    serve(tmp_path / "file" / "audit", test)
    assert len([each for each in caplog.records if "audit log cannot be written" in each.message]) == 1


def test_long_requests_are_named_by_their_length_and_ids_are_hex_digits(tmp_path):
    audit = AuditLog(tmp_path, "mgmtd-1")
    revocations = methods.Mgmtd.revoke_tokens.request()
    revocations.tokens.add(id=bytes(range(16)))

    class Manager:
        def revoke_tokens(self, request, identity):
            return Empty()

    entry = methods.Bound(methods.Mgmtd.revoke_tokens, Manager().revoke_tokens)
    (watched,) = audit.watched([entry])
    watched.handler(revocations, verify(SECRET, ADMINISTRATOR))
    for _ in range(500):
        revocations.tokens.add(id=bytes(16))
    watched.handler(revocations, verify(SECRET, ADMINISTRATOR))
    short, long = entries(tmp_path, CHANGES)
    assert short["request"] == {"tokens": [{"id": bytes(range(16)).hex()}]}
    assert long["request"] == {"bytes": revocations.ByteSize()}
    assert json.dumps(short)


def test_lines_that_are_none_of_the_log_are_left_out(tmp_path):
    line = b'{"time": "2026-12-07T00:00:00Z", "what": "x"}'
    (tmp_path / f"meta-1.{CHANGES}").write_bytes(
        b"\n".join((b"[" * 100_000, b"{", b"\xff", line, b'{"time": 1}'))
    )
    assert [entry["what"] for entry in entries(tmp_path, CHANGES)] == ["x"]
