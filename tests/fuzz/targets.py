"""What fuzzers call: for each parser of bytes from outside, a function of any bytes.

Each raises nothing: a parser says no with an error that it documents, and anything else is a finding. Strangers reach
`handshake`, `lane`, `credentials` and `http`; the holder of a token `meta`; a damaged disk, or a file or text from
elsewhere, `stored`, `documents` and `texts`. `core/src/fuzz.rs` has those of Rust.
"""

import asyncio
import hashlib
import hmac
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import click
from google.protobuf.message import DecodeError

from luciola import config, settings
from luciola.cli.dump_text import TextReader
from luciola.cli.host import Invitation, parse_labels, parse_roles
from luciola.cli.metadata_restore import parse_time
from luciola.cli.token import parse_lifetime
from luciola.client.location import parse_location
from luciola.errors import ConfigError, CorruptData, Error, InvalidArgument, Unauthenticated
from luciola.kv import record
from luciola.kv.checkpoint import segment
from luciola.kv.checkpoint.seal import Seal
from luciola.kv.log.ordered_log import Position, Record
from luciola.meta import schema
from luciola.metrics.reader import parse_samples
from luciola.metrics.server import status_for
from luciola.plugins.checkpoint.manifest import parse_manifest
from luciola.plugins.weights.checksums import parse_checksums
from luciola.plugins.weights.header import parse_header
from luciola.units import parse_bytes
from luciola.wire import ADMIN, CLIENT, TRUSTED, addresses, credentials, errors, handshake, methods, tls
from luciola.wire.audit import CHANGES, read_entries
from luciola.wire.authority import Authority
from luciola.wire.certificates import Issuer, Subject, describe
from luciola.wire.cluster import parse_cluster
from luciola.wire.credentials import Identity, Token
from unit.meta.world import CHUNK, World
from unit.wire.test_lane_hostile import open_, replies, talk

SECRET: Final = bytes(range(32))
NOWHERE: Final = Path("/nowhere")
NAMESPACES_PER_WORLD: Final = 500  # inputs that one metadata service gets before a fresh one


def handshake_bytes(data: bytes) -> None:
    """What a stranger answers to a HELLO; claims that the holder of the secret signed; the error in a reply."""
    with suppress(Unauthenticated):
        handshake.ServerSide(SECRET, kind=handshake.LANE).answer(data)
    for version in (0, credentials.VERSION):
        key = credentials.derive_key(SECRET, data, version=version)
        with suppress(Unauthenticated):
            identity, _ = Authority.of(SECRET).prove(
                data, lambda seen, key=key: hmac.compare_digest(seen, key)
            )
            identity.may_call_from("10.1.2.3")
            identity.has_expired(0)
    assert isinstance(errors.decode_bytes(data), Error)


def lane_bytes(data: bytes) -> None:
    """Frames on a lane, before its handshake or after one."""
    is_open, data = data[:1] > b"\x7f", data[1:]

    def test(connection, pipe):
        if is_open:
            open_(connection, pipe)
        else:
            pipe.written.clear()
        connection.data_received(data)
        if is_open:
            replies(pipe.written)
        else:
            assert bytes(pipe.written) in (b"", handshake.REFUSAL)

    talk(test)


def credential_bytes(data: bytes) -> None:
    """A token in a header, what follows it in a file, a certificate, and a request for one."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(Unauthenticated):
        token = Token.parse(text)
        assert Token.parse(token.encode()) == token
        assert token.id is not None
        credentials.verify(SECRET, token)
    with suppress(ConfigError):
        tls.parse_holding(text)
    with suppress(ConfigError):
        describe(data)
    with suppress(InvalidArgument):
        issuer().issue(data, Subject("m", "10.0.0.1", ("mgmtd",)))


@cache
def issuer() -> Issuer:
    return Issuer.create("fuzz")


def http_bytes(data: bytes) -> None:
    """A request for metrics, and an answer to one."""
    assert 200 <= status_for(data.partition(b"\r\n\r\n")[0]) < 500
    with suppress(ValueError):
        parse_samples(data.decode())


class Namespace:
    """One metadata service for many inputs."""

    def __init__(self) -> None:
        self.world = World()
        self.left = NAMESPACES_PER_WORLD
        self.world.mkdir(b"d")
        self.world.create(b"d/f")
        self.world.chunked(b"a", b"x" * (CHUNK + 1), close=False)
        self.world.symlink(b"link", b"link")

    def send(self, data: bytes) -> None:
        known = methods.methods_of(methods.Meta)
        method = known[data[0] % len(known)]
        identity = Identity((CLIENT, TRUSTED, ADMIN)[data[1] % 3], data[1] % 2 * 1000, 1000, ())
        try:
            request = method.request.FromString(data[2:])
        except DecodeError:  # which the carriers answer
            return
        with suppress(Error):
            self.world.run(self._call(method, request, identity))

    async def _call(self, method, request, identity) -> None:
        reply = getattr(self.world.service, method.attribute)(request, identity)
        if method.streams:
            async for item in reply:
                item.SerializeToString()
        else:
            reply = await reply if asyncio.iscoroutine(reply) else reply
            assert len(reply.SerializeToString()) < 8 << 20


namespaces: list[Namespace] = []


def meta_bytes(data: bytes) -> None:
    """A request of any verb of the metadata service: its number, who asks, and the message."""
    if len(data) < 2:
        return
    if not namespaces or namespaces[0].left == 0:
        for old in namespaces:
            old.world.close()
        namespaces[:] = [Namespace()]
    namespaces[0].left -= 1
    namespaces[0].send(data)


def stored_bytes(data: bytes) -> None:
    """Values and files of the metadata store, its log and its checkpoints."""
    for decode in (
        record.decode_record,
        Position.decode,
        Record.decode,
        Seal.decode,
        schema.decode_inode,
        schema.decode_dentry,
        schema.decode_garbage,
        schema.decode_quarantined,
    ):
        with suppress(CorruptData):
            decode(data)
    with suppress(CorruptData, ConfigError):
        schema.decode_superblock(data)
    with suppress(CorruptData):
        record.decode_record(record._CHECKSUM.pack(record.crc32(data)) + data)
    line = data.partition(b"\n")[0]
    signed = line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"
    with suppress(CorruptData):
        Seal.decode(signed)
    with tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        path = Path(directory, "log.changes")
        for content in (signed + segment._TAIL.pack(len(signed), segment.MAGIC), data):
            path.write_bytes(content)
            with suppress(CorruptData):
                segment.read_segment(path)
        list(read_entries(Path(directory), [CHANGES]))


MEMORY: Final = "/dev/shm" if Path("/dev/shm").is_dir() else None


def document_bytes(data: bytes) -> None:
    """Documents in JSON or TOML: dump, invitation, cluster file, configuration, manifests and headers of files."""
    with suppress(InvalidArgument):
        for _ in TextReader(io.BytesIO(data)):
            pass
    with suppress(CorruptData):
        parse_manifest(data, "manifest.json")
    with suppress(CorruptData):
        parse_checksums(data, "file.crc32c")
    with suppress(CorruptData):
        parse_header(data, 8 + len(data) + 64, "file")
    with suppress(UnicodeDecodeError):
        text = data.decode()
        with suppress(ConfigError):
            config.loads(text)
        with suppress(ConfigError):
            settings.check(settings.parse(text))
        with suppress(ConfigError):
            Invitation.parse(NOWHERE, text)
    with suppress(ValueError, RecursionError):
        table = json.loads(data)
        with suppress(ConfigError):
            _ = parse_cluster(NOWHERE, table)


def text_bytes(data: bytes) -> None:
    """Words of a command line: sizes, addresses, times, locations, labels."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(ValueError):
        assert parse_bytes(text) >= 0
    with suppress(InvalidArgument):
        for each in addresses.parse_addresses(text):
            host, port = addresses.parse_address(each)
            assert 0 <= port < 1 << 16
            addresses.is_loopback(host)
    with suppress(ConfigError):
        settings.check_each(settings.assigned((text,)))
    with suppress(InvalidArgument):
        parse_time(text, now_ms=1 << 41)
    for environment in ({}, {"LUCIOLA_ADDRESS": "h:1"}):
        with suppress(InvalidArgument):
            parse_location(text, environment)
    context, option = click.Context(click.Command("fuzz")), click.Option(["--fuzz"])
    for parse in (parse_lifetime, parse_roles):
        with suppress(click.BadParameter):
            parse(context, option, text)
    with suppress(click.BadParameter):
        parse_labels(context, option, tuple(text.split(",")))


TARGETS: Final[Mapping[str, Callable[[bytes], None]]] = {
    "credentials": credential_bytes,
    "documents": document_bytes,
    "handshake": handshake_bytes,
    "http": http_bytes,
    "lane": lane_bytes,
    "meta": meta_bytes,
    "stored": stored_bytes,
    "texts": text_bytes,
}

__all__ = ["TARGETS"]
