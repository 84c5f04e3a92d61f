"""Which tokens are void before they expire, as the manager keeps it.

R1  what is revoked stays so until the token has expired by itself, or indefinitely if it does not
R2  there are at most REVOKED_MAX; after that the key of all tokens has to be replaced, or a time be named before
    which none may have been made
"""

from collections.abc import Iterable
from typing import Final

from ..errors import InvalidArgument
from ..wire.authority import ID_BYTES_MAX, REVOKED_MAX
from ..wire.pb import mgmtd_pb2 as pb
from .records import Change, Records

FORGET_S: Final = 86_400  # after a token has expired: more than clocks of hosts differ


def revoke(records: Records, request: pb.Revocations, *, now_unix_s: int) -> Change:
    """Return what to store so that `request` is revoked too. Raises: InvalidArgument beyond a limit."""
    revoked: dict[bytes, int] = {}
    for token in request.tokens:
        if not 0 < len(token.id) <= ID_BYTES_MAX:
            raise InvalidArgument(f"not the id of a token: {token.id.hex()[:100]!r}")
        known = records.revoked.get(token.id, revoked.get(token.id))
        revoked[token.id] = _later(known, token.expires_unix_s)
    forgotten = tuple(
        token
        for token, end in records.revoked.items()
        if 0 < end < now_unix_s - FORGET_S and token not in revoked
    )
    count = len(records.revoked.keys() | revoked.keys()) - len(forgotten)
    if count > REVOKED_MAX:
        raise InvalidArgument(
            f"at most {REVOKED_MAX} tokens are revoked one by one: name a time instead, before which all were made"
        )
    minted_before = {
        each.key_id: max(each.minted_unix_s, records.minted_before.get(each.key_id, 0))
        for each in request.minted_before
    }
    if any(time > now_unix_s + FORGET_S for time in minted_before.values()):
        raise InvalidArgument("the time before which tokens are void is in the future")
    return Change(
        revoked=tuple(item for item in revoked.items() if records.revoked.get(item[0]) != item[1]),
        forgotten_tokens=forgotten,
        minted_before=tuple(
            item for item in minted_before.items() if records.minted_before.get(item[0]) != item[1]
        ),
    )


def united(several: Iterable[pb.Revocations]) -> Change:
    """Return what to store, in a store that has nothing, so that all is revoked that any of these revoke (R1)."""
    revoked: dict[bytes, int] = {}
    minted_before: dict[int, int] = {}
    for each in several:
        for token in each.tokens:
            revoked[token.id] = _later(revoked.get(token.id), token.expires_unix_s)
        for before in each.minted_before:
            minted_before[before.key_id] = max(before.minted_unix_s, minted_before.get(before.key_id, 0))
    return Change(revoked=tuple(revoked.items()), minted_before=tuple(minted_before.items()))


def _later(known: int | None, end: int) -> int:
    """Return the later end of a token, of which 0, none, is the latest: what is said about a token may be wrong."""
    if known is None:
        return end
    return max(known, end) if known and end else 0


def all_revoked(records: Records) -> pb.Revocations:
    """Return all that is revoked."""
    return pb.Revocations(
        tokens=(pb.RevokedToken(id=token, expires_unix_s=end) for token, end in records.revoked.items()),
        minted_before=(
            pb.MintedBefore(key_id=key, minted_unix_s=time) for key, time in records.minted_before.items()
        ),
    )


__all__ = ["FORGET_S", "all_revoked", "revoke", "united"]
