"""Where a client's token comes from, and comes from again: a file that others replace, or the cluster's secret.

T1  a token is replaced by a newer one of the same file without a break: what cannot be read now, or has expired,
    replaces nothing
T2  the file is read again only when it has changed
"""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from .credentials import Token, load_current_token, load_secret, mint, require_current
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
        del refused
        stamp = _stamp(self._path)
        if self._token is None or stamp is None or stamp != self._seen:
            self._token = load_current_token(self._path)
            self._seen = stamp  # of before the reading: a change in between is seen next time
        return require_current(self._token, path=str(self._path))


class SecretFile:
    """Tokens of this process's user, made with the secret in a file."""

    def __init__(self, path: Path, *, role: Claims.Role, now_unix_s: Callable[[], float] = time.time) -> None:
        self._path = path
        self._role = role
        self._now_unix_s = now_unix_s
        self._seen: _Stamp | None = None
        self._token: Token | None = None
        self._minted_unix_s = -math.inf

    @property
    def name(self) -> str:
        return f"the token made with the secret in {self._path}"

    def __call__(self, *, refused: bool = False) -> Token:
        """Raises: as `load_secret`."""
        stamp, now = _stamp(self._path), self._now_unix_s()
        age_s = now - self._minted_unix_s
        is_fresh = 0 <= age_s < (AGAIN_S if refused else MINT_S)
        if self._token is None or stamp != self._seen or not is_fresh:
            secret = load_secret(self._path)
            self._token = mint(secret, role=self._role, lifetime_s=MINTED_S, now_unix_s=now)
            self._seen, self._minted_unix_s = stamp, now
        return self._token


def _stamp(path: Path) -> _Stamp | None:
    """Return what is another after each change of a file; None if it cannot be seen."""
    try:
        about = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


__all__ = ["Given", "SecretFile", "Source", "TokenFile"]
