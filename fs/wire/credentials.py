"""The cluster secret, the tokens derived from it, and who a caller therefore is.

    secret ──mint──> Token(claims, key) ──text or handshake──> verify ──> Identity

A holder of the secret can mint any token; a holder of a token can be who it names until it expires
(docs/protocol.md, "Credentials"). This module does no network I/O.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from google.protobuf.message import DecodeError

from ..errors import AlreadyExists, ConfigError, InvalidArgument, NotFound, PermissionDenied, Unauthenticated
from .addresses import ip_address_of
from .atomic_write import write_private
from .pb.common_pb2 import Caller, Claims
from .private_file import read_private_file
from .tls import Tls, parse_holding

SECRET_BYTES: Final = 32
KEY_BYTES: Final = hashlib.sha256().digest_size
CLAIMS_BYTES_MAX: Final = 1024  # claims_len of the handshake; about 200 groups
NONCE_BYTES: Final = 16
SERVICE_TOKEN_S: Final = 600.0  # a service's token is of use for so long to who captures it
RENEW_S: Final = 60.0  # a service makes another after this: clocks of hosts may differ by nine minutes
VERSION: Final = 2  # of claims that a release before them would not obey; 0: of all others
VERSION_2: Final = (
    b"luciola claims 2\0"  # before such claims where their key is derived: earlier releases refuse it
)
NETWORKS_MAX: Final = 16
PATH_BYTES_MAX: Final = 512  # of the path in a token, which only people read

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
        text = read_private_file(path, what="the cluster secret")
    except FileNotFoundError as error:
        raise NotFound("no cluster secret here; `luciola up` creates one", path=str(path)) from error
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

    def described(self) -> Claims:
        """Return the claims, which are proved only by the key. Raises: Unauthenticated if they cannot be read."""
        return _parse_claims(self.claims)

    @property
    def id(self) -> str:
        """The name of this token among all, in hex digits. Raises: Unauthenticated as `described`."""
        return self.described().nonce.hex()

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Return the token in the first line of `text`. Says nothing about its truth. Raises: Unauthenticated."""
        text = text.partition("\n")[0].rstrip()
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What a token does not open. Without any it opens what its role does.

    `root`: inode of the directory that it opens, 0 for all; `path`: of that directory when the token was made.
    `audience`: id of the cluster that it is for. `networks`: where its bearer may call from, each as "10.0.0.0/8".
    """

    read_only: bool = False
    root: int = 0
    path: bytes = b""
    audience: str = ""
    networks: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != NO_LIMITS

    @property
    def confines(self) -> bool:
        """Whether it opens only some files, or only to be read: administration would go around that."""
        return self.read_only or self.root != 0


NO_LIMITS: Final = Limits()


def mint(  # noqa: PLR0913 (the fields of Claims)
    secret: bytes,
    *,
    role: Claims.Role = CLIENT,
    uid: int | None = None,
    gid: int | None = None,
    groups: Iterable[int] | None = None,
    lifetime_s: float | None = None,
    now_unix_s: float | None = None,
    limits: Limits = NO_LIMITS,
    key_id: int = 0,
) -> Token:
    """Return a token for this process's user, or for the one named. `lifetime_s` None: it never expires.

    `key_id`: of `secret`. Raises: InvalidArgument for more groups than fit, and for limits out of bounds.
    """
    _check_limits(limits, role)
    own = uid is None
    now = time.time() if now_unix_s is None else now_unix_s
    version = VERSION if limits or key_id else 0
    claims = Claims(
        role=role,
        uid=os.geteuid() if uid is None else uid,
        gid=(os.getegid() if own else 65534) if gid is None else gid,
        groups=(os.getgroups() if own else ()) if groups is None else groups,
        expires_unix_s=0 if lifetime_s is None else max(1, int(now + lifetime_s)),
        nonce=os.urandom(NONCE_BYTES),
        key_id=key_id,
        audience=limits.audience,
        path=limits.path,
        read_only=limits.read_only,
        networks=limits.networks,
        minted_unix_s=max(0, int(now)),
        version=version,
        root=limits.root,
    ).SerializeToString(deterministic=True)
    if len(claims) > CLAIMS_BYTES_MAX:
        raise InvalidArgument(
            f"too many groups, or too long a path, for a token: {len(claims)} bytes, {CLAIMS_BYTES_MAX} fit"
        )
    return Token(claims, derive_key(secret, claims, version=version))


def _check_limits(limits: Limits, role: Claims.Role) -> None:
    if limits.confines and role >= ADMIN:
        raise InvalidArgument(
            "an administrator could go around a path, or change what is read-only: use the role client or trusted"
        )
    if len(limits.path) > PATH_BYTES_MAX:
        raise InvalidArgument(f"the path of a token has at most {PATH_BYTES_MAX} bytes")
    if len(limits.networks) > NETWORKS_MAX:
        raise InvalidArgument(f"a token names at most {NETWORKS_MAX} networks")
    for text in limits.networks:
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            raise InvalidArgument(f"not a network, as 10.0.0.0/8 is one: {error}") from error


def derive_key(secret: bytes, claims: bytes, *, version: int) -> bytes:
    """Return the key that belongs to serialized `claims` of that version."""
    assert len(secret) == SECRET_BYTES, "a secret is 32 bytes"
    assert version in (0, VERSION), "there are two ways"
    return hmac.digest(secret, VERSION_2 + claims if version else claims, "sha256")


class Minter:
    """Tokens of a holder of the secret that expire after SERVICE_TOKEN_S, renewed as they are used.

    For what sends its token to peers that do not prove themselves first.
    """

    def __init__(
        self, secret: bytes, *, role: Claims.Role, now_unix_s: Callable[[], float] = time.time
    ) -> None:
        self._secret = secret
        self._role = role
        self._now_unix_s = now_unix_s
        self._minted_unix_s = -math.inf
        self._token: Token | None = None

    def __call__(self) -> Token:
        """Return a token that was minted less than RENEW_S ago. One from the future means that the clock was set."""
        now = self._now_unix_s()
        if self._token is None or not 0 <= now - self._minted_unix_s < RENEW_S:
            self._token = mint(self._secret, role=self._role, lifetime_s=SERVICE_TOKEN_S, now_unix_s=now)
            self._minted_unix_s = now
        return self._token


def save_token(path: Path, token: Token, *, holding: str = "") -> None:
    """Write `token` to `path`, which only this user may read then. A token that is there is replaced.

    `holding`: what follows it (`tls.encode_holding`).

    Raises: InvalidArgument if something else than a regular file has that name, a symbolic link included; OSError.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise InvalidArgument("exists, and is not a regular file; name another", path=str(path))
    try:
        write_private(path, f"{token.encode()}\n{holding}")
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # the caller knows no temporary name
        raise


def load_token(path: Path) -> Token:
    """Return the token in `path`, whatever it is worth (`require_current`).

    Raises: NotFound; PermissionDenied, ConfigError as `read_private_file`; Unauthenticated if it is not a token.
    """
    try:
        text = read_private_file(path, what="the token")
    except FileNotFoundError as error:
        raise NotFound(
            "no token here; `luciola token create --out FILE` makes one", path=str(path)
        ) from error
    try:
        return Token.parse(text)
    except Unauthenticated as error:
        raise Unauthenticated(error.message, path=str(path)) from error


def load_tls(path: Path) -> Tls | None:
    """Return what the token in `path` came with. Raises: as `load_token`; ConfigError."""
    try:
        return parse_holding(read_private_file(path, what="the token"))
    except FileNotFoundError:
        return None  # who reads the token says so
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from error


def load_current_token(path: Path) -> Token:
    """Return the token in `path`, which has not expired. Raises: as `load_token` and `require_current`."""
    return require_current(load_token(path), path=str(path))


def require_current(token: Token, *, path: str | None = None) -> Token:
    """Return `token`, which `path` holds if it is from a file, unless it has expired by this machine's clock.

    The server has the last word; this says more than its refusal. Raises: Unauthenticated.
    """
    expires_unix_s = token.described().expires_unix_s
    if expires_unix_s and time.time() >= expires_unix_s:
        raise Unauthenticated(
            f"the token {token.id} expired at {format_unix_s(expires_unix_s)}; "
            "make another with `luciola token create`",
            path=path,
        )
    return token


def format_unix_s(unix_s: int) -> str:
    """Return a time as people read it, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))
    except (OverflowError, ValueError):  # a year that the platform does not know
        return f"{unix_s} s after 1970"


Principal: TypeAlias = tuple[Claims.Role, int, int, bool]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, as proved by a token. `expires_unix_s` 0: never. `token`: its id."""

    role: Claims.Role
    uid: int
    gid: int
    groups: tuple[int, ...]
    expires_unix_s: int = 0
    token: bytes = field(default=b"", compare=False)
    key_id: int = 0
    minted_unix_s: int = field(default=0, compare=False)
    limits: Limits = NO_LIMITS

    @property
    def principal(self) -> "Principal":
        """What a token has in common with those that renew it: client ids belong to it."""
        return self.role, self.uid, self.limits.root, self.limits.read_only

    def may(self, role: Claims.Role) -> bool:
        """Return whether this identity may do what `role` may: each role includes those before it."""
        return self.role >= role and (role < ADMIN or not self.limits.confines)

    def has_expired(self, now_unix_s: float) -> bool:
        return 0 < self.expires_unix_s <= now_unix_s

    def may_call_from(self, host: str) -> bool:
        """Return whether the token may be used by a process at the address `host`."""
        if not self.limits.networks:
            return True
        address = ip_address_of(host)
        return address is not None and any(_contains(each, address) for each in self.limits.networks)

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


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether `address` is in `network`. What is no network holds nothing, as on storage nodes."""
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


NOBODY: Final = 65534  # root without trust is squashed to it, as NFS does


def verify(secret: bytes, token: Token, *, now_unix_s: float | None = None) -> Identity:
    """Return the identity that `token` proves. Raises: Unauthenticated."""
    return verify_with({0: secret}, token, now_unix_s=now_unix_s)


def verify_with(keys: Mapping[int, bytes], token: Token, *, now_unix_s: float | None = None) -> Identity:
    """Return the identity that `token` proves with one of the secrets in `keys`, by id. Raises: Unauthenticated."""
    identity, _ = prove(
        keys, token.claims, lambda key: hmac.compare_digest(key, token.key), now_unix_s=now_unix_s
    )
    return identity


def prove(
    keys: Mapping[int, bytes],
    claims: bytes,
    is_shown: Callable[[bytes], bool],
    *,
    now_unix_s: float | None = None,
) -> tuple[Identity, bytes]:
    """Return the identity in `claims` and their key, which `is_shown` recognises.

    Nothing of the claims is read before that. Raises: Unauthenticated.
    """
    if len(claims) > CLAIMS_BYTES_MAX:
        raise Unauthenticated("the token's claims are too long")
    for key_id, secret in keys.items():
        for version in (0, VERSION):
            key = derive_key(secret, claims, version=version)
            if is_shown(key):
                identity = read_claims(claims, version=version, now_unix_s=now_unix_s)
                if identity.key_id != key_id:
                    raise Unauthenticated("the token names another key than it was made with")
                return identity, key
    raise Unauthenticated("the token was not made with this cluster's secret")


def read_claims(claims: bytes, *, version: int | None = None, now_unix_s: float | None = None) -> Identity:
    """Return the identity in `claims`, whose key was proved, in the way of `version` unless that is None.

    Raises: Unauthenticated if they have expired, or say what this release does not know.
    """
    message = _parse_claims(claims)
    now = time.time() if now_unix_s is None else now_unix_s
    limits = Limits(message.read_only, message.root, message.path, message.audience, tuple(message.networks))
    known = VERSION if limits or message.key_id else 0
    if message.version != known or version not in (None, known) or message.role not in Claims.Role.values():
        raise Unauthenticated("the token says what only another release knows")
    identity = Identity(
        message.role,
        message.uid,
        message.gid,
        tuple(message.groups),
        message.expires_unix_s,
        message.nonce,
        message.key_id,
        message.minted_unix_s,
        limits,
    )
    if identity.has_expired(now):
        raise Unauthenticated("the token has expired")
    return identity


def _parse_claims(claims: bytes) -> Claims:
    try:
        return Claims.FromString(claims)
    except DecodeError as error:
        raise Unauthenticated("the token's claims cannot be read") from error


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
    "NETWORKS_MAX",
    "NOBODY",
    "NO_LIMITS",
    "SECRET_BYTES",
    "SERVICE",
    "TRUSTED",
    "Identity",
    "Limits",
    "Minter",
    "Principal",
    "Token",
    "create_secret",
    "derive_key",
    "format_unix_s",
    "load_current_token",
    "load_secret",
    "load_tls",
    "load_token",
    "mint",
    "proof",
    "prove",
    "read_claims",
    "require_current",
    "save_token",
    "verify",
    "verify_with",
]
