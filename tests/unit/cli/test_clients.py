"""Clients as `luciola clients` shows them."""

from luciola.cli.clients import describe_clients
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.common_pb2 import Claims
from luciola.wire.pb.meta_pb2 import ClientFiles, ClientFilesReply

LISTED = pb.ListClientsReply(
    unix_ms=90_500,
    clients=[
        pb.ClientSession(
            client=0xAB,
            host="h",
            pid=3,
            kind=pb.NODE_MOUNT,
            started_unix_ms=60_000,
            last_seen_unix_ms=90_000,
            role=Claims.TRUSTED,
            uid=5,
            token=b"\x01\x02",
            release="0.1.0",
            description="mount on /mnt",
        ),
        pb.ClientSession(client=0xCD, kind=pb.NODE_CLIENT, started_unix_ms=50_000, last_seen_unix_ms=91_000),
    ],
)


def test_client_is_shown_with_its_token_and_open_files() -> None:
    files = ClientFilesReply(clients=[ClientFiles(client=0xAB, write_sessions=2, read_holds=7)])
    older, mount = describe_clients(LISTED, files)
    assert mount == {
        "id": "00000000000000ab",
        "kind": "mount",
        "host": "h",
        "pid": 3,
        "role": "trusted",
        "uid": 5,
        "token": "0102",
        "release": "0.1.0",
        "since": "1970-01-01T00:01:00+00:00",
        "silent_s": 0.5,
        "write_sessions": 2,
        "read_holds": 7,
        "description": "mount on /mnt",
    }
    assert (older["id"], older["kind"], older["write_sessions"], older["read_holds"]) == (
        "00000000000000cd",
        "client",
        0,
        0,
    )
    assert older["silent_s"] == 0  # its last message came after the reply began


def test_open_files_are_unknown_without_a_metadata_service() -> None:
    assert describe_clients(LISTED, None)[1]["write_sessions"] is None
