"""Where a client's token comes from, and comes from again: a file that others replace, or the cluster's secret.

T1  a token is replaced by a newer one of the same file without a break: what cannot be read now, or has expired,
    replaces nothing
T2  a file that could be read is read again only when it has changed, or when its token is refused
"""

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ..errors import Error, Unauthenticated
from .credentials import RENEW_S, SERVICE_TOKEN_S, Token, load_secret, load_token, mint, require_current
from .pb.common_pb2 import Claims

MINTED_S: Final = 86_400.0  # lifetime of a client's token that is made with the secret
MINT_S: Final = 3_600.0  # it is replaced after this: clocks of hosts may differ by 23 hours
AGAIN_S: Final = 10.0  # a token that is refused is replaced no sooner: a wrong secret does not become right

_Stamp = tuple[int, ...]


class Source(Protocol):
    """Calling it returns the token to show now. Raises: as `connect` for what cannot be read or has expired."""

    @property
    def name(self) -> str:
        """What the token is, for people: it begins with "the token"."""

    def __call__(self, *, refused: bool = False) -> Token:
        """`refused`: a server has refused the one that was returned last."""


class Given:
    """A token that is not replaced."""

    name = "the token"

    def __init__(self, token: Token) -> None:
        self._token = token

    def __call__(self, *, refused: bool = False) -> Token:
        """Raises: Unauthenticated when it has expired."""
        del refused
        return require_current(self._token)


class TokenFile:
    """The token in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: _Stamp | None = None
        self._token: Token | None = None

    @property
    def name(self) -> str:
        return f"the token in {self._path}"

    def __call__(self, *, refused: bool = False) -> Token:
        """Raises: as `load_current_token`."""
        stamp = _stamp(self._path)  # which a network file system may know late
        if refused or self._token is None or stamp is None or stamp != self._seen:
            self._token = load_token(self._path)
            self._seen = stamp  # of before the reading: a change in between is seen next time
        return require_current(self._token, path=str(self._path))


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Of tokens that are made with the secret. One is replaced after `renew_s`, or `again_s` if it was refused."""

    expires_s: float
    renew_s: float
    again_s: float


LONG: Final = Lifetimes(MINTED_S, MINT_S, AGAIN_S)
SHORT: Final = Lifetimes(SERVICE_TOKEN_S, RENEW_S, again_s=0)


class SecretFile:
    """Tokens of this process's user, made with the secret in a file."""

    def __init__(
        self,
        path: Path,
        *,
        role: Claims.Role,
        lifetimes: Lifetimes = LONG,
        now_unix_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._role = role
        self._lifetimes = lifetimes
        self._now_unix_s = now_unix_s
        self._seen: _Stamp | None = None
        self._token: Token | None = None
        self._minted_unix_s = -math.inf

    @property
    def name(self) -> str:
        return f"the token made with the secret in {self._path}"

    def short_lived(self) -> "SecretFile":
        """For calls that show the token to who has not proven itself: as of services, it soon expires.

        A refused one is made again at once: who calls asks once for each refusal.
        """
        return SecretFile(
            self._path,
            role=self._role,
            lifetimes=SHORT,
            now_unix_s=self._now_unix_s,
        )

    def __call__(self, *, refused: bool = False) -> Token:
        """Raises: as `load_secret`."""
        stamp, now = _stamp(self._path), self._now_unix_s()
        age_s = now - self._minted_unix_s
        is_fresh = 0 <= age_s < (self._lifetimes.again_s if refused else self._lifetimes.renew_s)
        if self._token is None or stamp != self._seen or not is_fresh:
            secret = load_secret(self._path)
            self._token = mint(secret, role=self._role, lifetime_s=self._lifetimes.expires_s, now_unix_s=now)
            self._seen, self._minted_unix_s = stamp, now
        return self._token


class Kept:
    """The token of a source for each call of a client; while the source has none, the one of before (T1)."""

    def __init__(self, source: Source) -> None:
        """Raises: as `source`."""
        self._source = source
        self._token = source()

    def __call__(self, *, refused: bool = False) -> Token:
        """Raises: as the source, when the token of before has expired."""
        try:
            self._token = self._source(refused=refused)
        except (Error, OSError) as error:
            with suppress(Unauthenticated):
                return require_current(self._token)
            raise error from None
        return self._token

    def is_replaced(self) -> bool:
        """A server has refused the token: return whether there is another one."""
        before = self._token
        return self(refused=True) != before


def _stamp(path: Path) -> _Stamp | None:
    """Return what is another after each change of a file; None if it cannot be seen."""
    try:
        about = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


__all__ = ["Given", "Kept", "SecretFile", "Source", "TokenFile"]
