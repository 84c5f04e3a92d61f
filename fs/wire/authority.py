"""Whom a service believes: the keys of its cluster, and the tokens that were revoked.

One object a process: its servers, lane and gRPC, ask it about each caller. It is given what is revoked, by mgmtd's
store or the stream of routing, and calls the servers, which end the connections of tokens that are not valid any more.
"""

import time
from collections.abc import Callable, Mapping
from typing import Final

from ..errors import Unauthenticated, Unavailable
from .cluster import Cluster
from .credentials import SERVICE, Identity, Token, prove, verify_with
from .pb.mgmtd_pb2 import Revocations

REVOKED_MAX: Final = 65_536  # tokens of one cluster: 2 MiB here and in a stream of routing
ID_BYTES_MAX: Final = 64  # of a token; this release makes 16


class Authority:
    """Says of tokens whether they are valid. `keys`: secrets by their id; `cluster`: its id, empty in tests.

    `waits`: until it is given what is revoked, it believes tokens of services alone.
    """

    def __init__(self, keys: Mapping[int, bytes], *, cluster: str = "", waits: bool = False) -> None:
        self._keys = dict(keys)
        self._cluster = cluster
        self._waits = waits
        self._revoked: frozenset[bytes] = frozenset()
        self._minted_before: dict[int, int] = {}
        self._listeners: list[Callable[[], None]] = []

    @classmethod
    def of_cluster(cls, cluster: Cluster, *, waits: bool = False) -> "Authority":
        """Return that of a service of `cluster`. Raises: as `load_secret`."""
        return cls({0: cluster.secret()}, cluster=cluster.cluster_id, waits=waits)

    @classmethod
    def of(cls, secret: "bytes | Authority") -> "Authority":
        """Return one that has that secret, with the id 0, and knows of no revoked token; or the one that is given."""
        return secret if isinstance(secret, Authority) else cls({0: secret})

    def verify(self, token: Token, *, now_unix_s: float | None = None) -> Identity:
        """Return the identity that `token` proves. Raises: as `require_valid`."""
        identity = verify_with(self._keys, token, now_unix_s=now_unix_s)
        self.require_valid(identity)
        return identity

    def prove(self, claims: bytes, is_shown: Callable[[bytes], bool]) -> tuple[Identity, bytes]:
        """Return the identity in `claims` and their key, which `is_shown` recognises. Raises: as `require_valid`."""
        identity, key = prove(self._keys, claims, is_shown)
        self.require_valid(identity)
        return identity, key

    def require_valid(self, identity: Identity) -> None:
        """Raises: Unauthenticated for a token that has expired, was revoked, or is for another cluster.

        Unavailable while it is not known what is revoked.
        """
        if self._waits and identity.role < SERVICE:
            raise Unavailable("this service does not know yet which tokens are revoked")
        if identity.has_expired(time.time()):
            raise Unauthenticated("the token has expired")
        if identity.token in self._revoked:
            raise Unauthenticated("the token has been revoked")
        if identity.minted_unix_s < self._minted_before.get(identity.key_id, 0) and identity.role < SERVICE:
            raise Unauthenticated("the token has been revoked, with all others of its time")
        if identity.limits.audience and identity.limits.audience != self._cluster:
            raise Unauthenticated("the token is for another cluster")

    def is_valid(self, identity: Identity) -> bool:
        """Return whether `require_valid` would not raise."""
        try:
            self.require_valid(identity)
        except (Unauthenticated, Unavailable):
            return False
        return True

    def set_revocations(self, revocations: Revocations) -> None:
        """From now on these are revoked, and no others. Listeners look at their connections again."""
        self._waits = False
        self._revoked = frozenset(each.id for each in revocations.tokens)
        self._minted_before = {each.key_id: each.minted_unix_s for each in revocations.minted_before}
        assert b"" not in self._revoked, "a token without an id cannot be revoked by it"
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """`listener` is called when tokens may have become void."""
        self._listeners.append(listener)


__all__ = ["ID_BYTES_MAX", "REVOKED_MAX", "Authority"]
