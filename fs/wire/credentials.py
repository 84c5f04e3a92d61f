"""The cluster secret, the tokens derived from it, and who a caller therefore is.

    secret ──mint──> Token(claims, key) ──text or handshake──> verify ──> Identity

A holder of the secret can mint any token; a holder of a token can be who it names until it expires
(docs/protocol.md, "Credentials"). This module does no network I/O.
"""

import base64
import binascii
import hashlib
import hmac
import os
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from google.protobuf.message import DecodeError

from ..errors import AlreadyExists, ConfigError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from .pb.common_pb2 import Caller, Claims

SECRET_BYTES: Final = 32
KEY_BYTES: Final = hashlib.sha256().digest_size
CLAIMS_BYTES_MAX: Final = 1024  # claims_len of the handshake; about 200 groups
NONCE_BYTES: Final = 16

CLIENT: Final = Claims.CLIENT
TRUSTED: Final = Claims.TRUSTED
ADMIN: Final = Claims.ADMIN
SERVICE: Final = Claims.SERVICE


def create_secret(path: Path) -> bytes:
    """Return a new cluster secret, written to `path`, which must not exist; only its owner may read it.

    Raises: AlreadyExists.
    """
    secret = os.urandom(SECRET_BYTES)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise AlreadyExists("the cluster secret exists already", path=str(path)) from error
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret.hex() + "\n")
        file.flush()
        os.fsync(descriptor)
    return secret


def load_secret(path: Path) -> bytes:
    """Return the cluster secret in `path`.

    Raises: NotFound, PermissionDenied if this user may not read it; ConfigError if others may, if it belongs
    to another user, or if it is not 64 hex digits.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound("no cluster secret here; `luciola up` creates one", path=str(path)) from error
    except PermissionError as error:
        raise PermissionDenied("the cluster secret may be read by its owner only", path=str(path)) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be opened as a secret file: {error.strerror}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        if about.st_mode & 0o077:
            raise ConfigError(f"{path}: others may read or write the cluster secret; run `chmod 600 {path}`")
        if about.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path}: belongs to uid {about.st_uid}, not to this user or to root")
        text = os.read(descriptor, 4096).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"{path}: must hold {2 * SECRET_BYTES} hex digits")
    return secret


class Token(NamedTuple):
    """Serialized claims, and the key that only a holder of the secret can compute from them."""

    claims: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Token(…)"  # logs and tracebacks must not hold what opens a cluster

    def encode(self) -> str:
        """Return the text form, for headers and environment variables."""
        return f"{_base64(self.claims)}.{_base64(self.key)}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Return the token written as `text`. Says nothing about its truth. Raises: Unauthenticated."""
        claims, dot, key = text.partition(".")
        if not dot or len(text) > 2 * (CLAIMS_BYTES_MAX + KEY_BYTES):
            raise Unauthenticated("not a token: <claims>.<key> is expected")
        try:
            token = cls(_unbase64(claims), _unbase64(key))
        except (binascii.Error, ValueError) as error:
            raise Unauthenticated("not a token: its parts are not base64url") from error
        if len(token.key) != KEY_BYTES:
            raise Unauthenticated(f"not a token: its key has {len(token.key)} bytes, not {KEY_BYTES}")
        return token


def mint(  # noqa: PLR0913 (the fields of Claims)
    secret: bytes,
    *,
    role: Claims.Role = CLIENT,
    uid: int | None = None,
    gid: int | None = None,
    groups: Iterable[int] | None = None,
    lifetime_s: float | None = None,
) -> Token:
    """Return a token for this process's user, or for the one named. `lifetime_s` None: it never expires.

    Raises: InvalidArgument for more groups than fit.
    """
    own = uid is None
    claims = Claims(
        role=role,
        uid=os.geteuid() if uid is None else uid,
        gid=(os.getegid() if own else 65534) if gid is None else gid,
        groups=(os.getgroups() if own else ()) if groups is None else groups,
        expires_unix_s=0 if lifetime_s is None else max(1, int(time.time() + lifetime_s)),
        nonce=os.urandom(NONCE_BYTES),
    ).SerializeToString(deterministic=True)
    if len(claims) > CLAIMS_BYTES_MAX:
        raise InvalidArgument(f"too many groups for a token: {len(claims)} bytes, {CLAIMS_BYTES_MAX} fit")
    return Token(claims, derive_key(secret, claims))


def derive_key(secret: bytes, claims: bytes) -> bytes:
    """Return the key that belongs to serialized `claims`."""
    assert len(secret) == SECRET_BYTES, "a secret is 32 bytes"
    return hmac.digest(secret, claims, "sha256")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, as proved by a token. `expires_unix_s` 0: never."""

    role: Claims.Role
    uid: int
    gid: int
    groups: tuple[int, ...]
    expires_unix_s: int = 0

    def may(self, role: Claims.Role) -> bool:
        """Return whether this identity may do what `role` may: each role includes those before it."""
        return self.role >= role

    def user(self, caller: Caller) -> tuple[int, int, tuple[int, ...]]:
        """(uid, gid, groups) that a request of `caller` runs as.

        A trusted mount or a service speaks for any user. Every other client speaks for the user of the token,
        whatever the request says, and never for root.
        Raises: PermissionDenied if the request names another user than the token.
        """
        if self.role >= TRUSTED:
            return caller.uid, caller.gid, tuple(caller.groups)
        if caller.uid != self.uid:
            raise PermissionDenied(f"this token speaks for uid {self.uid}, not for uid {caller.uid}")
        if self.uid == 0:
            return NOBODY, NOBODY, ()
        return self.uid, self.gid, self.groups


NOBODY: Final = 65534  # root without trust is squashed to it, as NFS does


def verify(secret: bytes, token: Token, *, now_unix_s: float | None = None) -> Identity:
    """Return the identity that `token` proves. Raises: Unauthenticated."""
    if len(token.claims) > CLAIMS_BYTES_MAX or not hmac.compare_digest(
        derive_key(secret, token.claims), token.key
    ):
        raise Unauthenticated("the token was not made with this cluster's secret")
    return read_claims(token.claims, now_unix_s=now_unix_s)


def read_claims(claims: bytes, *, now_unix_s: float | None = None) -> Identity:
    """Return the identity in `claims`, whose key was proved. Raises: Unauthenticated if they have expired."""
    try:
        message = Claims.FromString(claims)
    except DecodeError as error:
        raise Unauthenticated("the token's claims cannot be read") from error
    now = time.time() if now_unix_s is None else now_unix_s
    if message.expires_unix_s and now >= message.expires_unix_s:
        raise Unauthenticated("the token has expired")
    return Identity(message.role, message.uid, message.gid, tuple(message.groups), message.expires_unix_s)


def proof(key: bytes, *, side: bytes, kind: int, nonce_server: bytes, nonce_client: bytes) -> bytes:
    """Return what `side` (b"client" or b"server") sends in a handshake to show that it holds `key`."""
    assert len(key) == KEY_BYTES, "a key is a digest"
    assert side in (b"client", b"server"), "a handshake has two sides"
    return hmac.digest(key, side + bytes((kind,)) + nonce_server + nonce_client, "sha256")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)


__all__ = [
    "ADMIN",
    "CLAIMS_BYTES_MAX",
    "CLIENT",
    "KEY_BYTES",
    "NOBODY",
    "SECRET_BYTES",
    "SERVICE",
    "TRUSTED",
    "Identity",
    "Token",
    "create_secret",
    "derive_key",
    "load_secret",
    "mint",
    "proof",
    "read_claims",
    "verify",
]
