"""The handshake that opens a lane or a data-plane connection, as bytes: no sockets here.

server → client   HELLO     magic(4) kind(1) version(1) reserved(2) nonce_s(32)
client → server   ANSWER    magic(4) kind(1) version(1) claims_len(2) nonce_c(32) claims proof_c(32)
server → client   WELCOME   status(1) reserved(7) proof_s(32)
"""

import hmac
import os
import struct
from typing import Final

from ..errors import Unauthenticated, Unavailable
from .authority import Authority
from .credentials import CLAIMS_BYTES_MAX, KEY_BYTES, Identity, Token, proof

MAGIC: Final = b"LUC1"
LANE: Final = 1
DATA: Final = 2
VERSION: Final = 1
NONCE_BYTES: Final = 32
TIMEOUT_S: Final = 5.0

HELLO: Final = struct.Struct("<4sBBH32s")
ANSWER: Final = struct.Struct("<4sBBH32s")
WELCOME: Final = struct.Struct("<B7x32s")
ANSWER_BYTES_MAX: Final = ANSWER.size + CLAIMS_BYTES_MAX + KEY_BYTES
REFUSAL: Final = WELCOME.pack(1, bytes(KEY_BYTES))


class ServerSide:
    """The server's half of one handshake: send `hello`, feed what arrives to `answer`."""

    def __init__(self, secret: bytes | Authority, *, kind: int) -> None:
        assert kind in (LANE, DATA), "a connection is of one kind"
        self._authority = Authority.of(secret)
        self._kind = kind
        self._nonce = os.urandom(NONCE_BYTES)
        self.hello: Final = HELLO.pack(MAGIC, kind, VERSION, 0, self._nonce)

    def answer(self, data: bytes) -> tuple[Identity, bytes, int] | None:
        """(who it is, WELCOME to send, bytes of `data` used), or None while more bytes are needed.

        Raises: Unauthenticated, after which REFUSAL is sent and the connection closed.
        """
        if len(data) < ANSWER.size:
            if data[: len(MAGIC)] != MAGIC[: len(data)]:
                raise Unauthenticated("not this protocol")
            return None
        magic, kind, version, claims_bytes, nonce_client = ANSWER.unpack_from(data)
        if (magic, kind, version) != (MAGIC, self._kind, VERSION) or claims_bytes > CLAIMS_BYTES_MAX:
            raise Unauthenticated("not this protocol, or another version of it")
        used = ANSWER.size + claims_bytes + KEY_BYTES
        if len(data) < used:
            return None
        claims = bytes(data[ANSWER.size : ANSWER.size + claims_bytes])
        shown = bytes(data[ANSWER.size + claims_bytes : used])
        identity, key = self._authority.prove(
            claims, lambda key: hmac.compare_digest(shown, self._proof(key, b"client", nonce_client))
        )
        assert used <= ANSWER_BYTES_MAX, "an ANSWER is bounded"
        return identity, WELCOME.pack(0, self._proof(key, b"server", nonce_client)), used

    def _proof(self, key: bytes, side: bytes, nonce_client: bytes) -> bytes:
        return proof(key, side=side, kind=self._kind, nonce_server=self._nonce, nonce_client=nonce_client)


class ClientSide:
    """The client's half: give it the HELLO, send what it returns, then give it the WELCOME."""

    def __init__(self, token: Token, *, kind: int) -> None:
        self._token = token
        self._kind = kind
        self._nonce = os.urandom(NONCE_BYTES)
        self._expected = b""

    def answer(self, hello: bytes) -> bytes:
        """ANSWER to `hello`. Raises: Unavailable if that is not a server of this kind and version."""
        magic, kind, version, _, nonce_server = HELLO.unpack(hello)
        if (magic, kind, version) != (MAGIC, self._kind, VERSION):
            raise Unavailable("the peer is not a Luciola service of this kind and version")
        key = self._token.key
        shown = proof(
            key, side=b"client", kind=self._kind, nonce_server=nonce_server, nonce_client=self._nonce
        )
        self._expected = proof(
            key, side=b"server", kind=self._kind, nonce_server=nonce_server, nonce_client=self._nonce
        )
        claims = self._token.claims
        return ANSWER.pack(MAGIC, self._kind, VERSION, len(claims), self._nonce) + claims + shown

    def finish(self, welcome: bytes) -> None:
        """Check the server's proof. Raises: Unauthenticated if it refused us, or cannot prove itself."""
        status, shown = WELCOME.unpack(welcome)
        if status != 0:
            raise Unauthenticated("refused: the token is wrong or has expired")
        if not hmac.compare_digest(shown, self._expected):
            raise Unauthenticated("the server does not hold this cluster's secret")


__all__ = [
    "ANSWER_BYTES_MAX",
    "DATA",
    "HELLO",
    "LANE",
    "REFUSAL",
    "TIMEOUT_S",
    "WELCOME",
    "ClientSide",
    "ServerSide",
]
